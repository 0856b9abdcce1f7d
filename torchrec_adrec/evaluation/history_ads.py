"""The ads of a user's history, which may be left out of his candidates."""

import numpy as np
import polars as pl

from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.exact_search import ExcludedAds
from torchrec_adrec.losses.history import FIRST_KNOWN
from torchrec_adrec.schema import Schema


def check_history(schema: Schema) -> None:
    """Refuse to leave out the ads of histories that the data do not have.

    Raises:
        ConfigError: no list of the users holds the ids of ads.
    """
    if all(feature.shares_ids_with is None for feature in schema.sequences):
        raise ConfigError(
            "evaluation.exclude_history is true, and no list of the users holds the ids"
            " of ads: there is nothing to leave out. Name the ads' column in the data"
            " (`history: {of: item}`), or set it to false"
        )


def ads_of_histories(
    rows: pl.DataFrame, catalog: pl.DataFrame, schema: Schema
) -> ExcludedAds | None:
    """Find the ads whose item stands in the history of a row's user.

    Args:
        rows: encoded, one a query.
        catalog: of all ads, encoded.
        schema: of the data; without a history of ads the result is None.
    """
    shared = [f for f in schema.sequences if f.shares_ids_with is not None]
    if not shared:
        return None
    history, item = shared[0], str(shared[0].shares_ids_with)
    items = (
        rows.select(history.columns)
        .with_row_index("query")
        .unpivot(index="query", value_name="item")
        .filter(pl.col("item") >= FIRST_KNOWN)
        .select("query", pl.col("item").cast(pl.Int64))
        .unique()
    )
    ads = catalog.select(pl.col(item).cast(pl.Int64).alias("item"))
    pairs = items.join(ads.with_row_index("ad"), on="item").sort("query", "ad")
    counts = np.bincount(pairs["query"].to_numpy(), minlength=len(rows))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ExcludedAds(starts, pairs["ad"].to_numpy().astype(np.int64))
