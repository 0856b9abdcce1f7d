"""The treatment of ads whose values change, like an item with a new price.

Where a column names the ad (`DataSet.ad`), such an item stays one ad and has its latest
values in the catalog. Where no column does, every price makes another ad of it, and a
list of ten recommendations may then be one item ten times. Whether that has happened is
measured here, and refused if it has happened to most ads.
"""

from collections.abc import Sequence

import polars as pl
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.data.catalog import (
    COUNTED,
    SEEN_ROW,
    SEEN_TIME,
    ad_ids,
    clash,
)
from torchrec_adrec.data.column import Column
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import AD_ID

MAX_ADS = 2.0  # per value of the item's column


class Varying(BaseModel):
    """A record of how an item's other columns vary.

    Attributes:
        item: the column that names the ad, or may name it.
        values: number of its distinct values in all rows.
        ads: number of ads in the catalog.
        columns: by column, the number of items for which it has more than one value;
            the most varying column first, without columns that never vary.
        outdated: by column, the share of training rows that show another value than the
            catalog. None if the catalog has an ad for every combination of values.
    """

    model_config = ConfigDict(frozen=True)

    item: str
    values: int
    ads: int
    columns: dict[str, int]
    outdated: dict[str, float] | None = None

    @property
    def line(self) -> str:
        """The record as one line of a log or report."""
        if self.outdated is None:
            verb = "vary" if len(self.columns) > 1 else "varies"
            named = ", ".join(self.columns)
            number = (
                f"{self.item} has {self.values:,} values but makes {self.ads:,} ads"
            )
            return f"{number}, because {named} {verb}"
        parts = (
            f"{name} varies in {count:,} ({self.outdated[name]:.1%} of the training"
            " rows show another value)"
            for name, count in self.columns.items()
        )
        kept = f"{self.item} names {self.ads:,} ads, each with its latest values"
        return f"{kept}: {', '.join(parts)}"


def latest(
    combinations: pl.DataFrame, key: str, sources: Sequence[str]
) -> tuple[pl.DataFrame, Varying | None]:
    """Return one ad for each value of the key, with the values of its latest row.

    The latest row is the one with the latest time and, of equal times, the last one. It
    may be a test row: that is no leak, as these are the values that will be served, and
    the rows themselves keep the values that they were shown with.

    Args:
        combinations: every combination of the ad's raw values, as `load_ads` returns
            it, with the time and row in which it was last seen.
        key: the column that names the ad.
        sources: the ad side's raw columns, the key among them.

    Returns:
        The ads in rising order of `ad_id`, and how they vary (None: not at all).

    Raises:
        DataError: two keys share an id.
    """
    last = [pl.col(name).last() for name in sources if name != key]
    sums = [pl.col(name).sum() for name in COUNTED]
    ads = combinations.sort(SEEN_TIME, SEEN_ROW).group_by(key).agg(*last, *sums)
    # The id is made of the key alone, so it stays the same when the price changes.
    ids = pl.Series(AD_ID, ad_ids({key: Column.of(ads[key])}, (key,)))
    if ids.n_unique() != len(ads):
        raise clash()
    ads = ads.with_columns(ids).select(AD_ID, *sources, *COUNTED).sort(AD_ID)
    varying = _varying(combinations, key, len(ads), sources)
    if varying is None:
        return ads, None
    outdated = _outdated(combinations, ads, varying)
    return ads, varying.model_copy(update={"outdated": outdated})


def unnamed(
    ads: pl.DataFrame, items: Sequence[str], sources: Sequence[str]
) -> Varying | None:
    """Return how ads vary if no setting says which column names them.

    The column with the most values is taken for the item. None means that no other
    column varies.

    Args:
        ads: the catalog, with raw values.
        items: the columns of which one may name the ad.
        sources: the ad side's raw columns.
    """
    if not items:
        return None
    return _varying(ads, max(items, key=lambda n: ads[n].n_unique()), len(ads), sources)


def _varying(
    combinations: pl.DataFrame, item: str, ads: int, sources: Sequence[str]
) -> Varying | None:
    # A missing value counts as one more value: it would make another ad as well.
    others = [pl.col(name).n_unique() for name in sources if name != item]
    items = combinations.group_by(item).agg(others)
    counts = {n: int((items[n] > 1).sum()) for n in items.columns if n != item}
    most_first = sorted(counts.items(), key=lambda name_and_count: -name_and_count[1])
    columns = {name: count for name, count in most_first if count}
    if not columns:
        return None
    return Varying(item=item, values=len(items), ads=ads, columns=columns)


def _outdated(
    combinations: pl.DataFrame, ads: pl.DataFrame, varying: Varying
) -> dict[str, float]:
    """Return, by column, the share of impressions that do not show the latest value."""
    impressions = COUNTED[0]
    joined = combinations.join(ads, on=varying.item, suffix=":latest")
    total = max(int(combinations[impressions].sum()), 1)
    shares = {}
    for name in varying.columns:
        older = joined.filter(pl.col(name).ne_missing(pl.col(f"{name}:latest")))
        shares[name] = int(older[impressions].sum()) / total
    return shares


def refuse_varying(varying: Varying | None) -> None:
    """Refuse a catalog in which most ads are copies of an item with other values.

    Raises:
        DataError: names the columns and the ways out.
    """
    if varying is None or varying.outdated is not None:
        return
    if varying.ads > MAX_ADS * varying.values:
        raise DataError(
            f"{varying.line}; more than {MAX_ADS:g} ads per value are refused: name the"
            " column of the ad's id (data.table.ad_id), so that each ad has its latest"
            " values, leave the varying columns out, or set data.allow_varying_ads=true"
        )
