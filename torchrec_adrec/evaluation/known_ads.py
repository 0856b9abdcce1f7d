"""The ads that a user is known to have clicked, which may be no candidates for him."""

from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Int64s
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.exact_search import ExcludedAds
from torchrec_adrec.losses.history import FIRST_KNOWN
from torchrec_adrec.schema import AD_ID, NO_USER, USER_KEY, Schema

EARLIER = {"valid": ("train",), "test": ("train", "valid")}


def check_known(schema: Schema, data: Path) -> None:
    """Refuse to leave out known ads where the data know of none.

    Raises:
        ConfigError: they name no user, and no list of the users holds ids of ads.
    """
    if schema.history is None and not _has_users(data):
        raise ConfigError(
            f"evaluation.exclude_known is true, but {data} names no user, and no list"
            " of the users holds the ids of ads: nobody's clicks are known. Name the"
            " users' column in the data (of an own table: data.table.user_id), or set"
            " it to false"
        )


def known_ads(
    rows: pl.DataFrame, catalog: pl.DataFrame, schema: Schema, data: Path, split: str
) -> ExcludedAds:
    """Find the ads that each row's user clicked in an earlier split or in his history.

    Args:
        rows: encoded, of a held-out split, one a query.
        catalog: of all ads, encoded.
        schema: of the data.
        data: its folder.
        split: of the rows.

    Returns:
        Without users and histories nothing for any query.
    """
    pairs = [_of_histories(rows, catalog, schema)]
    if _has_users(data):
        pairs.append(_of_earlier_splits(rows, catalog, schema, data, split))
    return _as_excluded(pl.concat(pairs).unique(), len(rows))


def new_clicks(excluded: ExcludedAds, clicked: Int64s) -> tuple[Bools, ExcludedAds]:
    """Tell which clicks are on ads that their users are not known to have clicked.

    Who is known to have clicked an ad is not asked whether he would find it: towers
    whose user vector is made of the ads' own vectors put such an ad first.

    Args:
        excluded: what each query's user is known to have clicked.
        clicked: (Q,) positions in the catalog.

    Returns:
        (Q,) true for those that are asked for, and what is excluded for these alone.
    """
    query = np.repeat(np.arange(len(clicked)), np.diff(excluded.starts))
    is_new = np.ones(len(clicked), dtype=np.bool_)
    is_new[query[excluded.positions == clicked[query]]] = False
    kept = is_new[query]
    counts = np.bincount(query[kept], minlength=len(clicked))[is_new]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return is_new, ExcludedAds(starts, excluded.positions[kept])


def ads_of_histories(
    rows: pl.DataFrame, catalog: pl.DataFrame, schema: Schema
) -> ExcludedAds | None:
    """Find the ads whose item stands in the history of a row's user.

    Args:
        rows: encoded, one a query.
        catalog: of all ads, encoded.
        schema: of the data; without a history of ads the result is None.
    """
    if schema.history is None:
        return None
    return _as_excluded(_of_histories(rows, catalog, schema), len(rows))


def _has_users(data: Path) -> bool:
    return USER_KEY in pl.scan_parquet(data / "train" / "*.parquet").collect_schema()


def _of_histories(
    rows: pl.DataFrame, catalog: pl.DataFrame, schema: Schema
) -> pl.DataFrame:
    """Pairs of a row's place, `query`, and a place in the catalog, `ad`."""
    history = schema.history
    if history is None:
        return _pairs(pl.Series([]), pl.Series([]))
    item = str(history.shares_ids_with)
    items = (
        rows.select(history.columns)
        .with_row_index("query")
        .unpivot(index="query", value_name="item")
        .filter(pl.col("item") >= FIRST_KNOWN)
        .select("query", pl.col("item").cast(pl.Int64))
        .unique()
    )
    ads = catalog.select(pl.col(item).cast(pl.Int64).alias("item"))
    pairs = items.join(ads.with_row_index("ad"), on="item")
    return _pairs(pairs["query"], pairs["ad"])


def _of_earlier_splits(
    rows: pl.DataFrame, catalog: pl.DataFrame, schema: Schema, data: Path, split: str
) -> pl.DataFrame:
    click = schema.labels[0].name
    earlier = [
        pl.scan_parquet(data / name / "*.parquet")
        .filter((pl.col(click) == 1) & (pl.col(USER_KEY) != NO_USER))
        .select(USER_KEY, AD_ID)
        for name in EARLIER[split]
    ]
    asked = rows.select(USER_KEY).with_row_index("query")
    known = pl.concat(earlier).unique().collect()
    ads = catalog.select(AD_ID).with_row_index("ad")
    pairs = asked.join(known, on=USER_KEY).join(ads, on=AD_ID)
    return _pairs(pairs["query"], pairs["ad"])


def _pairs(queries: pl.Series, ads: pl.Series) -> pl.DataFrame:
    pairs = {"query": queries.cast(pl.Int64), "ad": ads.cast(pl.Int64)}
    return pl.DataFrame(pairs)


def _as_excluded(pairs: pl.DataFrame, rows: int) -> ExcludedAds:
    pairs = pairs.sort("query", "ad")
    counts = np.bincount(pairs["query"].to_numpy(), minlength=rows)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ExcludedAds(starts, pairs["ad"].to_numpy().astype(np.int64))
