"""The counter of raw values: how many training rows hold each distinct value.

All fits (vocabularies, means, quantiles) are made from these counts alone. They are
whole numbers, so a fit is exact and does not depend on how the rows were cut into
chunks or dealt to ranks.
"""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from torchrec_adrec.arrays import Bools
from torchrec_adrec.data.column import Column, RawColumns
from torchrec_adrec.data.keys import keys

# By raw column: a frame of `value` and `count`, in order of the value.
Counts = dict[str, pl.DataFrame]
VALUE = ("value",)
KEPT = 2_000_000  # entries of one column that wait before equal values are joined


class Counter:
    """Adds up the counts of many chunks.

    Args:
        columns: their names; each has frames of its own.
        by: the columns of a frame that say what was counted. All others are counts.
    """

    def __init__(self, columns: Iterable[str], by: tuple[str, ...] = VALUE) -> None:
        self._by = by
        self._parts: dict[str, list[pl.DataFrame]] = {name: [] for name in columns}
        self._waiting = dict.fromkeys(self._parts, 0)

    def add(self, counts: Counts) -> None:
        """Add the counts of one chunk."""
        for name, frame in counts.items():
            self._parts[name].append(frame)
            self._waiting[name] += len(frame)
            if self._waiting[name] > KEPT:
                joined = join(self._parts[name], self._by)
                self._parts[name] = [joined]
                # A joined frame counts as half its size. Otherwise a column with over
                # KEPT distinct values would be joined anew with every chunk.
                self._waiting[name] = len(joined) // 2

    def save(self, folder: Path) -> None:
        """Write this rank's counts, one file per column."""
        folder.mkdir()
        for number, parts in enumerate(self._parts.values()):
            if parts:
                join(parts, self._by).write_ipc(folder / f"{number:04d}.arrow")


def count(columns: RawColumns, names: Iterable[str], rows: Bools | None) -> Counts:
    """Count the values of some columns in some rows of a chunk.

    Args:
        columns: the chunk's raw columns.
        names: the columns to count; of vectors the keys are counted.
        rows: (B,) the rows to count; None counts all.
    """
    counts: Counts = {}
    for name in names:
        column = columns[name]
        value_counts = column.count(rows)
        scalars = column if isinstance(column, Column) else column.items
        values, occurs = scalars.values, value_counts > 0
        if not occurs.all():
            values = values.filter(pl.Series(occurs))
        if values.dtype == pl.Binary:
            values = pl.Series(keys(values))  # long values, of which the fit needs none
        counts[name] = pl.DataFrame({"value": values, "count": value_counts[occurs]})
    return counts


def load_counts(
    folders: list[Path], columns: Iterable[str], by: tuple[str, ...] = VALUE
) -> Counts:
    """Read the counts of all ranks and add them up."""
    counts: Counts = {}
    for number, name in enumerate(columns):
        paths = [folder / f"{number:04d}.arrow" for folder in folders]
        parts = [pl.read_ipc(path) for path in paths if path.exists()]
        counts[name] = join(parts, by)
    return counts


def join(parts: list[pl.DataFrame], by: tuple[str, ...] = VALUE) -> pl.DataFrame:
    """Add up the counts of equal values."""
    return pl.concat(parts).group_by(by).agg(pl.all().sum()).sort(by)
