"""One side's columns, on their way into a batch's buffer."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrec_adrec.arrays import Float32s, Int32s, ReadOnlyColumns
from torchrec_adrec.batch import TowerInput, TowerLayout
from torchrec_adrec.data.loader.bounds import OutOfRangeError, refuse, side_limits
from torchrec_adrec.data.prepare.row_buffer import Gathered
from torchrec_adrec.schema import MOST_ROWS, Schema, SequenceFeature, Side

NO_ID = -(2**31)  # an int32 that no table has
ID = np.dtype(np.int32)
# Most batches have the same layout; to compute it took a fifth of a batch's time.
_tower_layout = lru_cache(maxsize=64)(TowerLayout)


class SideColumns:
    """One side's columns, to be written to a buffer.

    Args:
        columns: (B,) arrays by name, at least those of the side.
        schema: orders the keys.
        side: whose columns.
        vectors: (B, width) by feature; None: they stand in `columns`. Rows of a split
            hold only the places of theirs.

    Raises:
        OutOfRangeError: an id of a history that is out of range or behind its end.
    """

    def __init__(
        self,
        columns: ReadOnlyColumns,
        schema: Schema,
        side: Side,
        vectors: ReadOnlyColumns | None = None,
    ) -> None:
        self.columns, self.schema, self.side = columns, schema, side
        source = columns if vectors is None else vectors
        self.vectors = [source[f.name] for f in schema.vectors_of(side)]
        self.sparse, self.dense = schema.sparse_of(side), schema.dense_of(side)
        self.sequences = schema.sequences_of(side)
        alone = (*self.sparse, *self.dense, *schema.vectors_of(side))
        names = [feature.name for feature in alone]
        names += [name for feature in self.sequences for name in feature.columns]
        self.rows = len(columns[names[0]])
        # The layout needs the number of ids of each history, so these come first.
        self.histories = [self._history(feature) for feature in self.sequences]

    def layout(self) -> TowerLayout:
        """Where `write` will put everything."""
        return _tower_layout(
            tuple(feature.name for feature in (*self.sparse, *self.sequences)),
            self.rows,
            len(self.schema.dense_names_of(self.side)),
            tuple(len(ids) for ids, _ in self.histories),
            self.schema.items_of(self.side),
        )

    def write(self, tower: TowerInput) -> None:
        """Write all columns to their places in the buffer, then check them there.

        Raises:
            OutOfRangeError: an id outside its table, or a number that is not finite.
        """
        ids, sparse_ids = tower.sparse.values().numpy(), len(self.sparse) * self.rows
        table = ids[:sparse_ids].reshape(len(self.sparse), self.rows)
        names = [feature.name for feature in self.sparse]
        matrix = self._matrix(names)
        # Training reads rows that lie together in memory; a request or the catalog has
        # separate columns, perhaps of other types.
        if matrix is not None and matrix.dtype == ID:
            table[:] = matrix.T
        else:
            _write_ids(table, [self.columns[name] for name in names])
        dense, names = self._write_vectors(tower), [f.name for f in self.dense]
        matrix = self._matrix(names)
        if matrix is not None:
            dense[:] = matrix
        else:
            for i, name in enumerate(names):
                dense[:, i] = self.columns[name]
        # Checked in the buffer: its blocks are contiguous, the columns are not.
        in_range = _in_range(table, 0, [f.num_embeddings for f in self.sparse])
        if not (in_range and np.isfinite(tower.dense.numpy()).all()):
            self._refuse()
        if self.histories:
            history_ids, history_lengths = zip(*self.histories, strict=True)
            np.concatenate(history_ids, out=ids[sparse_ids:])
            lengths = tower.sparse.lengths().numpy()
            lengths[:sparse_ids] = 1
            np.concatenate(history_lengths, out=lengths[sparse_ids:])

    def _write_vectors(self, tower: TowerInput) -> Float32s:
        """Write the vectors, and return the part of the numbers behind them."""
        dense, first = tower.dense.numpy(), 0
        for vectors in self.vectors:
            dense[:, first : first + vectors.shape[1]] = vectors
            first += vectors.shape[1]
        return dense[:, first:]

    def _matrix(self, names: list[str]) -> NDArray[Any] | None:
        """These columns as one matrix, (B, names), if the reader has them side by side.

        To copy a matrix takes a third of the time that its columns take one by one.
        """
        if isinstance(self.columns, Gathered):
            return self.columns.block(names)
        return None

    def _refuse(self) -> None:
        """Raise the error that names the first wrong value."""
        refuse(self.columns, side_limits(self.schema, self.side))
        features = self.schema.vectors_of(self.side)
        for feature, vectors in zip(features, self.vectors, strict=True):
            wrong = ~np.isfinite(vectors).all(axis=1)
            if wrong.any():
                row = int(np.argmax(wrong))
                message = f"{feature.name} is not finite; prepare again"
                raise OutOfRangeError(message, row)

    def _history(self, feature: SequenceFeature) -> tuple[Int32s, Int32s]:
        """The ids of a sequence, row after row, and the length of each row, (B,)."""
        table = np.empty((feature.max_length, self.rows), dtype=np.int32)
        _write_ids(table, [self.columns[name] for name in feature.columns])
        if not _in_range(table, -1, [feature.num_embeddings] * feature.max_length):
            self._refuse()
        table = np.ascontiguousarray(table.T)
        present = table >= 0
        # An id behind a -1 would move to an earlier place, and the row's length would
        # hide it: such a row was prepared wrongly.
        gaps = (present[:, 1:] > present[:, :-1]).any(axis=1)
        if gaps.any():
            row = int(np.argmax(gaps))
            raise OutOfRangeError(
                f"{feature.name} is {table[row].tolist()}, expected no id behind a -1;"
                " prepare again",
                row,
            )
        return table[present], present.sum(axis=1, dtype=np.int32)


def _write_ids(table: Int32s, columns: list[NDArray[Any]]) -> None:
    """Write columns of any type to a table of ids, (columns, B).

    A value that is no whole number, or that int32 cannot hold, becomes an id that no
    table has: a plain cast would turn 2^32 + 5 into 5.
    """
    for ids, column in zip(table, columns, strict=True):
        if column.dtype != ID:
            column = column.astype(np.float64)
            column[column != np.rint(column)] = NO_ID
            column = column.clip(NO_ID, MOST_ROWS)
        ids[:] = column


def _in_range(ids: Int32s, low: int, sizes: list[int]) -> bool:
    """Whether all ids of (columns, B) are in range; `low` is 0 or -1."""
    if low:
        return bool((ids.max(axis=1) < sizes).all() and ids.min() >= low)
    # Read without a sign, a negative id is a very large one: one pass instead of two.
    return bool((ids.view(np.uint32).max(axis=1) < sizes).all())
