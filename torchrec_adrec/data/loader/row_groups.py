"""The row groups of a prepared split, and where each row of it stands."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from torchrec_adrec.arrays import Columns, Int64s
from torchrec_adrec.errors import DataError


@dataclass(frozen=True)
class Split:
    """The row groups of one split, and where a row of it stands.

    Attributes:
        groups: (file, row group, rows), in order.
        firsts: the global row that each group starts with.
        types: of the columns, as the first file has them; the others must be like it.
    """

    groups: tuple[tuple[Path, int, int], ...]
    firsts: tuple[int, ...]
    num_rows: int
    types: Mapping[str, np.dtype[Any]]

    @classmethod
    def open(cls, folder: Path) -> "Split":
        """Read the row counts of all files.

        Raises:
            DataError: no Parquet files, no rows, or a damaged file.
        """
        paths = sorted(folder.glob("part-*.parquet"))
        groups = []
        for path in paths:
            meta = _open(path).metadata
            sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
            groups += [(path, i, rows) for i, rows in enumerate(sizes) if rows]
        if not groups:
            raise DataError(
                f"{folder} has no rows in part-*.parquet; run `adrec prepare`"
            )
        schema = _open(paths[0]).schema_arrow
        types = {field.name: np.dtype(field.type.to_pandas_dtype()) for field in schema}
        ends = list(accumulate(rows for *_, rows in groups))
        return cls(tuple(groups), (0, *ends[:-1]), ends[-1], types)

    def locate(self, row: int) -> str:
        """File, row group and row within it, for messages."""
        at = bisect.bisect_right(self.firsts, row) - 1
        path, group, _ = self.groups[at]
        return f"{path}, row group {group}, row {row - self.firsts[at]}"

    def numbers(self, groups: Sequence[int], rows: Int64s) -> Int64s:
        """Rows counted over some row groups, as `locate` takes them."""
        ends = np.cumsum([self.groups[at][2] for at in groups])
        group = np.searchsorted(ends, rows, side="right")
        shift = np.array([self.firsts[at] for at in groups]) - np.append(0, ends[:-1])
        return np.asarray(rows + shift[group])

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> Iterator[Columns]:
        """Row groups as arrays, one after the other; a null float becomes NaN.

        Raises:
            DataError: a file is damaged, or a column is missing or of another type.
        """
        for path, run in groupby(groups, key=lambda at: self.groups[at][0]):
            file = _open(path)
            for group in (self.groups[at][1] for at in run):
                try:
                    table = file.read_row_group(
                        group, columns=list(columns), use_threads=False
                    )
                except (OSError, ValueError) as error:
                    raise _unreadable(path, error) from None
                arrays = zip(table.column_names, table.combine_chunks(), strict=True)
                found = {
                    n: a.chunk(0).to_numpy(zero_copy_only=False) for n, a in arrays
                }
                self._check(found, columns, f"{path}, row group {group}")
                yield found

    def _check(self, found: Columns, columns: Sequence[str], where: str) -> None:
        for name in columns:
            if name not in found:
                raise DataError(f"{where} has no column {name}; prepare again")
            if found[name].dtype != self.types[name]:  # nulls make floats of integers
                raise DataError(
                    f"{where}: {name} is {found[name].dtype}, expected"
                    f" {self.types[name]} as in the first file and no null id;"
                    " prepare again"
                )


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read, prepare again: {error}")
