"""Columns of several types, kept so that the values of a row lie together.

To gather a row of 41 columns is then to copy two or three pieces of memory: 55 ns a row
at random out of a million rows, against 160 to 400 ns column by column.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrec_adrec.arrays import Columns, Int64s

TILE_ROWS = 2048


class Gathered(Mapping[str, NDArray[Any]]):
    """Columns by name, (B,) each and not contiguous; read only.

    Args:
        parts: names and (B, names) matrix of each type.
    """

    def __init__(self, parts: Sequence[tuple[list[str], NDArray[Any]]]) -> None:
        self._parts = parts
        self._columns: Columns = {}
        for names, matrix in parts:
            self._columns |= zip(names, matrix.T, strict=True)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def block(self, names: list[str]) -> NDArray[Any] | None:
        """Columns that stand side by side, as (B, names): to copy them at once takes a
        third of the time. None: they do not.
        """
        for own, matrix in self._parts:
            if names and names[0] in own:
                first = own.index(names[0])
                if own[first : first + len(names)] == names:
                    return matrix[:, first : first + len(names)]
        return None


class RowBuffer:
    """Room for `rows` rows of some columns: one (rows, columns) matrix per type."""

    def __init__(
        self, types: Mapping[str, np.dtype[Any]], columns: Sequence[str], rows: int
    ) -> None:
        self.rows = rows
        names: dict[np.dtype[Any], list[str]] = {}
        for name in columns:
            names.setdefault(types[name], []).append(name)
        self._parts = [(n, np.empty((rows, len(n)), t)) for t, n in names.items()]

    def put(self, first: int, columns: Columns) -> None:
        """Write columns of equal length to the rows from `first` on."""
        rows = len(next(iter(columns.values())))
        for names, matrix in self._parts:
            part = [columns[name] for name in names]
            # Tiles stay in the cache while their columns are written: 40 ns a row
            # instead of 52.
            for start in range(0, rows, TILE_ROWS):
                tile = matrix[first + start : first + min(start + TILE_ROWS, rows)]
                for i, column in enumerate(part):
                    tile[:, i] = column[start : start + len(tile)]

    def take(self, rows: Int64s) -> Gathered:
        """A copy of some rows.

        Raises:
            IndexError: a row that there is no room for.
        """
        return Gathered([(n, matrix.take(rows, axis=0)) for n, matrix in self._parts])
