"""Ads whose values change: one ad with its latest values, or one ad per combination.

Where a column names the ad (`DataSet.ad`), an item whose price changes stays one ad.
Where none does, each price makes another ad of it: a list of ten may then hold one item
ten times. Whether that happened is measured.
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

MAX_ADS = 2.0  # for each value of the item's column


class Varying(BaseModel):
    """How an item's other columns vary.

    Attributes:
        item: the column that names the ad, or may do so.
        values: its distinct values in all rows.
        ads: of the catalog.
        columns: by column, for how many of the values it has more than one value; the
            most first, columns that never vary left out.
        outdated: by column, where the latest values stand in the catalog: share of the
            training rows that were shown with another one.
    """

    model_config = ConfigDict(frozen=True)

    item: str
    values: int
    ads: int
    columns: dict[str, int]
    outdated: dict[str, float] | None = None

    @property
    def line(self) -> str:
        """What to tell of it, in one line."""
        if self.outdated is None:
            verb = "vary" if len(self.columns) > 1 else "varies"
            named = ", ".join(self.columns)
            many = f"{self.item} stands for {self.values:,} values but {self.ads:,} ads"
            return f"{many}: {named} {verb}"
        parts = (
            f"{name} varies in {count:,} ({self.outdated[name]:.1%} of the training"
            " rows show another value)"
            for name, count in self.columns.items()
        )
        kept = f"{self.item} names {self.ads:,} ads, each with its latest values"
        return f"{kept}: {', '.join(parts)}"


def latest(
    seen: pl.DataFrame, key: str, sources: Sequence[str]
) -> tuple[pl.DataFrame, Varying | None]:
    """One ad for each value of the key, with the values of its latest row.

    Latest by time, at the same time by the order of the rows: of all splits, because
    that is what will be served.

    Args:
        seen: every combination of the ad's raw values, as `load_ads` gives it, dated.
        key: the column that names the ad.
        sources: the ad side's raw columns, the key among them.

    Returns:
        The ads in rising order of `ad_id`, and what varies (None: nothing).

    Raises:
        DataError: two keys share an id.
    """
    last = [pl.col(name).last() for name in sources if name != key]
    sums = [pl.col(name).sum() for name in COUNTED]
    ads = seen.sort(SEEN_TIME, SEEN_ROW).group_by(key).agg(*last, *sums)
    ids = pl.Series(AD_ID, ad_ids({key: Column.of(ads[key])}, (key,)))
    if ids.n_unique() != len(ads):
        raise clash()
    ads = ads.with_columns(ids).select(AD_ID, *sources, *COUNTED).sort(AD_ID)
    found = _varying(seen, key, len(ads), sources)
    if found is None:
        return ads, None
    return ads, found.model_copy(update={"outdated": _outdated(seen, ads, found)})


def unnamed(
    ads: pl.DataFrame, items: Sequence[str], sources: Sequence[str]
) -> Varying | None:
    """What varies where no column was said to name the ad; None: nothing.

    The item is the column with the most values.

    Args:
        ads: the catalog, raw.
        items: columns that may name the ad.
        sources: the ad side's raw columns.
    """
    if not items:
        return None
    return _varying(ads, max(items, key=lambda n: ads[n].n_unique()), len(ads), sources)


def _varying(
    seen: pl.DataFrame, item: str, ads: int, sources: Sequence[str]
) -> Varying | None:
    others = [pl.col(name).n_unique() for name in sources if name != item]
    each = seen.group_by(item).agg(others)
    counts = {n: int((each[n] > 1).sum()) for n in each.columns if n != item}
    often = sorted(counts.items(), key=lambda found: -found[1])
    columns = {name: count for name, count in often if count}
    if not columns:
        return None
    return Varying(item=item, values=len(each), ads=ads, columns=columns)


def _outdated(
    seen: pl.DataFrame, ads: pl.DataFrame, found: Varying
) -> dict[str, float]:
    beside = seen.join(ads, on=found.item, suffix=":latest")
    shown = max(int(seen[COUNTED[0]].sum()), 1)
    old = {n: pl.col(n).ne_missing(pl.col(f"{n}:latest")) for n in found.columns}
    return {
        n: int(beside.filter(other)[COUNTED[0]].sum()) / shown
        for n, other in old.items()
    }


def refuse_varying(found: Varying | None) -> None:
    """Refuse a catalog in which most ads are one item with other values.

    Raises:
        DataError: names the columns and the ways out.
    """
    if found and found.outdated is None and found.ads > MAX_ADS * found.values:
        raise DataError(
            f"{found.line}; more than {MAX_ADS:g} ads a value are refused: name the"
            " column of the ad's id (data.table.ad_id), so that its latest values"
            " count, leave the varying columns out, or set data.allow_varying_ads=true"
        )
