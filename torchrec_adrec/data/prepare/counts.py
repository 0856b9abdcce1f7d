"""What the training rows hold: every distinct raw value with its number of rows.

All fits (vocabularies, means, quantiles) are made from these, so they are exact and do
not depend on how the rows were cut into chunks or dealt to ranks.
"""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from torchrec_adrec.arrays import Bools
from torchrec_adrec.data.column import Column, RawColumns

# By raw column: `value` and `count`, in order of the value.
Counts = dict[str, pl.DataFrame]
KEPT = 2_000_000  # entries of one column that wait before equal values are joined


class Counter:
    """Adds up the counts of many chunks."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._parts: dict[str, list[pl.DataFrame]] = {name: [] for name in columns}
        self._waiting = dict.fromkeys(self._parts, 0)

    def add(self, found: Counts) -> None:
        """Add the counts of one chunk."""
        for name, frame in found.items():
            self._parts[name].append(frame)
            self._waiting[name] += len(frame)
            if self._waiting[name] > KEPT:
                joined = join(self._parts[name])
                self._parts[name] = [joined]
                self._waiting[name] = len(joined) // 2  # grows: joins stay rare

    def save(self, folder: Path) -> None:
        """Write this rank's counts, one file a column."""
        folder.mkdir()
        for number, parts in enumerate(self._parts.values()):
            if parts:
                join(parts).write_ipc(folder / f"{number:04d}.arrow")


def count(columns: RawColumns, names: Iterable[str], rows: Bools | None) -> Counts:
    """Count some rows of a chunk; None: all."""
    found: Counts = {}
    for name in names:
        column = columns[name]
        counted = column.count(rows)
        scalars = column if isinstance(column, Column) else column.items
        seen = counted > 0
        values = (
            scalars.values if seen.all() else scalars.values.filter(pl.Series(seen))
        )
        found[name] = pl.DataFrame({"value": values, "count": counted[seen]})
    return found


def load_counts(folders: list[Path], columns: Iterable[str]) -> Counts:
    """The counts of all ranks, added up."""
    found: Counts = {}
    for number, name in enumerate(columns):
        paths = [folder / f"{number:04d}.arrow" for folder in folders]
        found[name] = join([pl.read_ipc(path) for path in paths if path.exists()])
    return found


def join(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Add up equal values."""
    return pl.concat(parts).group_by("value").agg(pl.col("count").sum()).sort("value")
