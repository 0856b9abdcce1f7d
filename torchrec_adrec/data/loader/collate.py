"""Writes columns into the one buffer of a batch; nothing else fills a buffer.

So the keys of every KJT, which `batch` makes from a layout, are in schema order (a test
holds this).
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torchrec_adrec.arrays import Int32s, ReadOnlyColumns
from torchrec_adrec.batch import (
    Batch,
    BatchLayout,
    TowerInput,
    TowerLayout,
    anchor_bucket,
)
from torchrec_adrec.config.data import Bounds
from torchrec_adrec.data.loader.batch_memory import Memory, heap
from torchrec_adrec.data.loader.bounds import (
    OutOfRangeError,
    RepairCounts,
    label_limit,
    refuse,
    repair,
    side_limits,
)
from torchrec_adrec.data.loader.parquet import StepRows
from torchrec_adrec.data.prepare.row_buffer import Gathered
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import (
    AD_ID,
    LOG_Q,
    MOST_ROWS,
    Schema,
    SequenceFeature,
    Side,
)

NO_ID = -(2**31)  # an int32 that no table has
ID = np.dtype(np.int32)


def batch_columns(schema: Schema) -> tuple[str, ...]:
    """The columns that `collate` needs."""
    sides = (schema.columns_of(side) for side in Side)
    return (*(n for names in sides for n in names), *schema.label_names, AD_ID, LOG_Q)


def collate(
    rows: StepRows,
    schema: Schema,
    bounds: Bounds = "raise",
    repaired: RepairCounts | None = None,
    extra: ReadOnlyColumns | None = None,
    memory: Memory = heap,
) -> Batch:
    """One rank's rows as a `Batch`.

    Args:
        rows: B of them.
        schema: names the columns and orders the keys.
        bounds: what happens to values out of range, see `data.loader.bounds`.
        repaired: counts them over all batches, for a caller that wants totals.
        extra: the ad's columns of N - B further ads, which belong to no row.
        memory: allocates the buffer.

    Raises:
        DataError: a value out of range, naming column, value, file and row; or an id
            behind the end of its sequence, whatever `bounds` says.
    """
    # Nearly all batches are in range, so they are checked while they are filled, whole
    # blocks at a time. Only a batch that fails is looked at column by column.
    try:
        return _batch(rows, schema, extra, memory)
    except OutOfRangeError as error:
        if error.row >= len(rows.weights):
            raise DataError(f"an ad of the catalog: {error}; prepare again") from None
        if bounds == "raise":
            position = rows.split.locate(int(rows.numbers[error.row]))
            raise DataError(f"{position}: {error}") from None
    counter = RepairCounts() if repaired is None else repaired
    allowed = repair(rows, schema, bounds, counter)
    # What `repair` leaves, such as a gap in a history, is raised by the second attempt.
    return collate(allowed, schema, extra=extra, memory=memory)


def _batch(
    rows: StepRows, schema: Schema, extra: ReadOnlyColumns | None, memory: Memory
) -> Batch:
    # Labels are read several times here, and the values of a column lie a whole row
    # apart in memory: one contiguous copy of each is faster.
    labels = {n: np.ascontiguousarray(rows.columns[n]) for n in schema.label_names}
    refuse(labels, map(label_limit, schema.labels))
    ads = rows.columns
    if extra is not None:
        ads = {name: np.append(ads[name], values) for name, values in extra.items()}
    # Extra ads have no user: the ad's side is longer than the user's.
    user = _SideColumns(rows.columns, schema, Side.USER)
    ad = _SideColumns(ads, schema, Side.AD)
    click = labels[schema.label_names[0]]
    anchors = np.flatnonzero((click == 1) & (rows.weights > 0))
    padded = _padded_anchors(len(anchors), user.rows)
    # The layout is known before anything is written: one allocation for the batch, and
    # every column is copied once, to where it stays.
    layout = _batch_layout(user.layout(), ad.layout(), len(labels), padded)
    batch = Batch(memory(layout.nbytes), layout)
    user.write(batch.user)
    ad.write(batch.ad)
    np.stack([*labels.values()], 1, out=batch.labels.numpy(), casting="same_kind")
    batch.weights.numpy()[:] = rows.weights
    batch.ad_ids.numpy()[:] = ads[AD_ID]
    batch.log_q.numpy()[:] = ads[LOG_Q]
    _write_padded(batch.anchors, anchors)
    _write_padded(batch.anchor_weights, rows.weights[anchors])
    return batch


def _padded_anchors(anchors: int, rows: int) -> int:
    """A for so many clicked rows: the next multiple of the bucket, and never 0."""
    bucket = anchor_bucket(rows)
    return max(-(-anchors // bucket), 1) * bucket


def _write_padded(target: Tensor, values: NDArray[Any]) -> None:
    """Write values, and 0 behind them."""
    array = target.numpy()
    array[: len(values)] = values
    array[len(values) :] = 0


def most_bytes(schema: Schema, rows: int, ads: int) -> int:
    """The largest buffer that a batch of so many rows and ads can need, in bytes.

    Args:
        schema: of the columns.
        rows: B; all of them may be clicked, and every history may be full.
        ads: N.
    """
    user, ad = (
        TowerLayout(
            keys=tuple(feature.name for feature in schema.bags_of(side)),
            rows=count,
            dense=len(schema.dense_of(side)),
            histories=tuple(count * f.max_length for f in schema.sequences_of(side)),
            items=schema.items_of(side),
        )
        for side, count in ((Side.USER, rows), (Side.AD, ads))
    )
    labels = len(schema.labels)
    return BatchLayout(user, ad, labels, _padded_anchors(rows, rows)).nbytes


def tower_input(columns: ReadOnlyColumns, schema: Schema, side: Side) -> TowerInput:
    """One side's columns as the input of its tower.

    Its KJT holds the ids of key after key, and of each key row after row. Two rows with
    a sparse feature `city` and a sequence `seen` of up to three ids:

        columns     city      seen:0  seen:1  seen:2
        row 0          4           5       6      -1
        row 1          7           9      -1      -1

        keys       "city"              "seen"
        rows       row 0    row 1      row 0    row 1
        lengths    1        1          2        1
        values     4        7          5  6     9

    Args:
        columns: (B,) arrays by name, at least those of this side.
        schema: orders the keys: sparse features, then sequences.
        side: the tower's.

    Raises:
        OutOfRangeError: an id outside its table, a number that is not finite, or an id
            behind the end of its sequence.
    """
    source = _SideColumns(columns, schema, side)
    layout = source.layout()
    tower = TowerInput(heap(layout.nbytes), layout)
    source.write(tower)
    return tower


# Most batches have the same layout; to compute it took a fifth of a batch's time.
_tower_layout = lru_cache(maxsize=64)(TowerLayout)
_batch_layout = lru_cache(maxsize=64)(BatchLayout)


class _SideColumns:
    """One side's columns, to be written to a buffer.

    Raises:
        OutOfRangeError: an id of a history that is out of range or behind its end.
    """

    def __init__(self, columns: ReadOnlyColumns, schema: Schema, side: Side) -> None:
        self.columns, self.schema, self.side = columns, schema, side
        self.sparse, self.dense = schema.sparse_of(side), schema.dense_of(side)
        self.sequences = schema.sequences_of(side)
        self.rows = len(columns[(*self.sparse, *self.dense)[0].name])
        # The layout needs the number of ids of each history, so these come first.
        self.histories = [self._history(feature) for feature in self.sequences]

    def layout(self) -> TowerLayout:
        """Where `write` will put everything."""
        return _tower_layout(
            tuple(feature.name for feature in (*self.sparse, *self.sequences)),
            self.rows,
            len(self.dense),
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
        dense, names = tower.dense.numpy(), [feature.name for feature in self.dense]
        matrix = self._matrix(names)
        if matrix is not None:
            dense[:] = matrix
        else:
            for i, name in enumerate(names):
                dense[:, i] = self.columns[name]
        # Checked in the buffer: its blocks are contiguous, the columns are not.
        in_range = _in_range(table, 0, [f.num_embeddings for f in self.sparse])
        if not (in_range and np.isfinite(dense).all()):
            self._refuse()
        if self.histories:
            history_ids, history_lengths = zip(*self.histories, strict=True)
            np.concatenate(history_ids, out=ids[sparse_ids:])
            lengths = tower.sparse.lengths().numpy()
            lengths[:sparse_ids] = 1
            np.concatenate(history_lengths, out=lengths[sparse_ids:])

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
