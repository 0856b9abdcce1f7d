"""The catalog of ads: every distinct combination of the ad side's raw values, once.

`catalog.parquet`, sorted by `ad_id`: `ad_id` int64, `impressions` and `clicks` of the
training rows, one encoded column per ad feature, one `raw_*` column per raw value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Float32s, Int64s, UInt64s
from torchrec_adrec.data.column import (
    Chunk,
    Column,
    JaggedColumn,
    RawColumns,
    values_of,
)
from torchrec_adrec.data.keys import keys, splitmix
from torchrec_adrec.errors import DataError, ManifestError
from torchrec_adrec.runtime.files import check_hashes
from torchrec_adrec.schema import AD_ID

COUNTED = ("impressions", "clicks")
# The time and the row in which a combination of values was last seen. The name of a
# feature has no colon, so that none can be the same.
SEEN_TIME, SEEN_ROW = "seen:time", "seen:row"
MISSING_KEY = np.int64(-1)
KEPT = 2_000_000  # ads of several chunks that are held before equal ones are joined


def ad_ids(raw: RawColumns, sources: Sequence[str]) -> Int64s:
    """A 63-bit id of the raw values of each row's ad, (B,) int64, never negative.

    Args:
        raw: the raw columns of the rows.
        sources: the columns whose values make an ad, in their fixed order.
    """
    mixed: UInt64s | None = None
    for name in sources:
        value = value_hashes(raw[name])
        mixed = splitmix(value if mixed is None else mixed ^ value)
    assert mixed is not None, "the ad's side has no columns"
    # FAISS returns -1 for "nothing found", so ids keep the sign bit free.
    return (mixed >> np.uint64(1)).view(np.int64)


def value_hashes(column: Column | JaggedColumn) -> UInt64s:
    """One hash of each row's value, (B,); of a list, the hash of the sum of its items'.

    So the order of a set does not count, and sets of ids have ids like single ones.
    """
    if isinstance(column, JaggedColumn):
        items = np.cumsum(value_hashes(column.items), dtype=np.uint64)
        sums = np.append(np.uint64(0), items)[column.offsets]
        return splitmix(sums[1:] - sums[:-1])
    hashed = splitmix(np.append(keys(column.values), MISSING_KEY).view(np.uint64))
    return np.asarray(hashed[column.codes])


@dataclass
class AdCounter:
    """Collects the ads of many chunks.

    Attributes:
        sources: the ad side's raw columns.
        label: the name of the click.
        dated: whether to record when each ad was last seen (see `varying.latest`).
    """

    sources: Sequence[str]
    label: str
    dated: bool = False
    _parts: list[pl.DataFrame] = field(default_factory=list)

    def count(self, chunk: Chunk, train: Bools, first_row: int = 0) -> pl.DataFrame:
        """Every ad of a chunk, with its impressions and clicks in the training rows.

        Args:
            chunk: rows of all splits: an ad without training rows is one too.
            train: (B,) which rows are trained on.
            first_row: number of the chunk's first row among those of all files.

        Raises:
            DataError: two ads share an id.
        """
        ads = Column.of(pl.Series(ad_ids(chunk.columns, self.sources)))
        # Written from the last row to the first, so that each ad's first row stays.
        first = np.empty(len(ads.values), dtype=np.int64)
        first[ads.codes[::-1]] = np.arange(chunk.num_rows)[::-1]
        clicked = train & (chunk.labels[self.label] == 1)
        counts = {
            name: ads.count(rows)
            for name, rows in zip(COUNTED, (train, clicked), strict=True)
        }
        raw = {}
        for name in self.sources:
            column: Any = chunk.columns[name]
            if not column.equals(column.rows(first[ads.codes])):
                # Two ads with one id would be one ad in all that follows.
                raise clash()
            raw[name] = values_of(column.rows(first))
        dates = _last_seen(ads, chunk, first_row) if self.dated else {}
        return pl.DataFrame({AD_ID: ads.values} | raw | counts | dates)

    def add(self, ads: pl.DataFrame) -> None:
        """Add the ads of one chunk."""
        self._parts.append(ads)
        if sum(map(len, self._parts)) > KEPT:
            self._parts = [_join(self._parts, self.sources)]

    def save(self, path: Path) -> None:
        """Write this rank's ads."""
        if self._parts:
            _join(self._parts, self.sources).write_ipc(path)


def load_ads(paths: list[Path], sources: Sequence[str]) -> pl.DataFrame:
    """The ads of all ranks in rising order of `ad_id`, each one once.

    Raises:
        DataError: two ads share an id.
    """
    return _join([pl.read_ipc(path) for path in paths if path.exists()], sources)


def log_q(ads: pl.DataFrame, ids: Int64s) -> Float32s:
    """Log of each ad's share of the training impressions, (B,); NaN if it had none.

    Args:
        ads: the catalog, in rising order of `ad_id`.
        ids: (B,) ids that are in it.
    """
    impressions = ads["impressions"].to_numpy().astype(np.float64)
    share = impressions / impressions.sum()
    share[share == 0] = np.nan
    logs = np.log(share).astype(np.float32)
    return np.asarray(logs[np.searchsorted(ads[AD_ID].to_numpy(), ids)])


def load_catalog(data: Path) -> pl.DataFrame:
    """The catalog of a prepared data set.

    Raises:
        ManifestError: it is missing or changed, or its ids are not in rising order.
    """
    path = data / "catalog.parquet"
    check_hashes(data, "catalog")
    catalog = pl.read_parquet(path)
    if not (catalog[AD_ID].diff().drop_nulls() > 0).all():
        raise ManifestError(f"{path}: ad ids must rise, each one once")
    return catalog


def _join(parts: list[pl.DataFrame], sources: Sequence[str]) -> pl.DataFrame:
    """One row per ad, with the sums of its counts and the latest of its dates."""
    joined = pl.concat(parts)
    summed = [pl.col(name).sum().cast(pl.Int64) for name in COUNTED]
    if SEEN_TIME in joined.columns:
        time, row = pl.col(SEEN_TIME), pl.col(SEEN_ROW)
        summed += [time.max(), row.filter(time == time.max()).max()]
    # Grouped by the raw values too: two ads with one id are then two rows.
    ads = joined.group_by(AD_ID, *sources).agg(summed).sort(AD_ID)
    if ads[AD_ID].n_unique() != len(ads):
        raise clash()
    return ads


def _last_seen(ads: Column, chunk: Chunk, first_row: int) -> dict[str, pl.Series]:
    """The latest time of each ad of a chunk and, at that time, its last row."""
    rows = np.arange(chunk.num_rows)
    times = np.zeros_like(rows) if chunk.time is None else chunk.time
    order = np.lexsort((rows, times))
    last = np.empty(len(ads.values), dtype=np.int64)
    last[ads.codes[order]] = order  # of several rows of an ad the last one stays
    return {
        SEEN_TIME: pl.Series(times[last]),
        SEEN_ROW: pl.Series(last + first_row),
    }


def clash() -> DataError:
    """The error of two ads whose ids are equal."""
    return DataError("two ads share a 63-bit id; leave one column out of the ad's side")
