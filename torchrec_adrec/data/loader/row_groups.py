"""The row groups of a prepared split, and the file and place of each of its rows."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from torchrec_adrec.arrays import Columns, Float32s, Int64s
from torchrec_adrec.errors import DataError


@dataclass(frozen=True)
class Split:
    """The row groups of one split, such as `train`, over all its files.

    Several splits can be read as one. Rows are numbered from 0, through all files.

    Attributes:
        groups: (file, row group, number of rows), in order.
        firsts: the number of the first row of each group.
        num_rows: of all groups.
        weights: how much a row of each group counts in the loss.
        types: of the columns in the first file; all other files must have the same.
    """

    groups: tuple[tuple[Path, int, int], ...]
    firsts: tuple[int, ...]
    num_rows: int
    weights: tuple[float, ...]
    types: Mapping[str, np.dtype[Any]]

    @property
    def data(self) -> Path:
        """The folder of the prepared data, with the vectors of its rows."""
        return self.groups[0][0].parent.parent

    @classmethod
    def open(
        cls, *folders: Path, weights: Mapping[Path, float] | None = None
    ) -> "Split":
        """The split of a folder, or of several, one after the other.

        It reads no rows, but the row counts of all files.

        Args:
            folders: of the first one are `types` and `data`.
            weights: of the rows of a folder; where it names none they count 1.

        Raises:
            DataError: a folder without rows, or a damaged file.
        """
        groups: list[tuple[Path, int, int]] = []
        of_groups: list[float] = []
        for folder in folders:
            groups += _groups(folder)
            weight = (weights or {}).get(folder, 1.0)
            of_groups += [weight] * (len(groups) - len(of_groups))
        schema = _open(groups[0][0]).schema_arrow
        types = {field.name: np.dtype(field.type.to_pandas_dtype()) for field in schema}
        ends = list(accumulate(rows for *_, rows in groups))
        firsts = (0, *ends[:-1])
        return cls(tuple(groups), firsts, ends[-1], tuple(of_groups), types)

    def locate(self, row: int) -> str:
        """The file, row group and row within it of a row number, for messages."""
        index = bisect.bisect_right(self.firsts, row) - 1
        path, group, _ = self.groups[index]
        return f"{path}, row group {group}, row {row - self.firsts[index]}"

    def numbers(self, groups: Sequence[int], rows: Int64s) -> Int64s:
        """The numbers in the split of rows that are counted over some groups only.

        Args:
            groups: positions in `self.groups`, in the order in which rows are counted.
            rows: counted from 0, through these groups.
        """
        ends = self._ends(groups)
        # A group's rows are consecutive in both counts: one shift serves all of them.
        firsts = np.array([self.firsts[index] for index in groups])
        shifts = firsts - np.append(0, ends[:-1])
        return np.asarray(rows + shifts[np.searchsorted(ends, rows, side="right")])

    def weights_of(self, groups: Sequence[int], rows: Int64s) -> Float32s:
        """How much rows count in the loss, (B,); arguments as of `numbers`."""
        weights = np.array([self.weights[index] for index in groups], dtype=np.float32)
        if (weights == weights[0]).all():  # in most runs, and then nothing is looked up
            return np.full(len(rows), weights[0])
        return weights[np.searchsorted(self._ends(groups), rows, side="right")]

    def _ends(self, groups: Sequence[int]) -> Int64s:
        return np.cumsum([self.groups[index][2] for index in groups])

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> Iterator[Columns]:
        """Read row groups as arrays, one after the other; a null float becomes NaN.

        Args:
            groups: positions in `self.groups`; those of a file should be neighbours,
                since a file is opened anew for each run of them.
            columns: their names.

        Raises:
            DataError: a file is damaged, or a column is missing or of another type.
        """
        for path, run in groupby(groups, key=lambda index: self.groups[index][0]):
            file = _open(path)
            for group in (self.groups[index][1] for index in run):
                try:
                    # The caller reads in a thread of its own already.
                    table = file.read_row_group(
                        group, columns=list(columns), use_threads=False
                    )
                except (OSError, ValueError) as error:
                    raise _unreadable(path, error) from None
                arrays = zip(table.column_names, table.combine_chunks(), strict=True)
                values = {
                    n: a.chunk(0).to_numpy(zero_copy_only=False) for n, a in arrays
                }
                self._check(values, columns, f"{path}, row group {group}")
                yield values

    def _check(self, values: Columns, columns: Sequence[str], place: str) -> None:
        """Compare the columns that were read with those of the first file."""
        for name in columns:
            if name not in values:
                raise DataError(f"{place} has no column {name}; prepare again")
            # A column of integers that holds a null arrives as floats.
            if values[name].dtype != self.types[name]:
                raise DataError(
                    f"{place}: {name} is {values[name].dtype}, expected"
                    f" {self.types[name]} as in the first file and no null id;"
                    " prepare again"
                )


def _groups(folder: Path) -> list[tuple[Path, int, int]]:
    """The file, number and rows of each row group of a folder that has rows."""
    groups = []
    for path in sorted(folder.glob("part-*.parquet")):
        meta = _open(path).metadata
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        groups += [(path, i, rows) for i, rows in enumerate(sizes) if rows]
    if not groups:
        raise DataError(f"{folder} has no rows in part-*.parquet; run `adrec prepare`")
    return groups


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read, prepare again: {error}")
