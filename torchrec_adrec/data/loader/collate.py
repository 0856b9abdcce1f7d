"""Columns to the one buffer of a batch. THE ONLY ONE WHO SAYS WHAT IS IN A BUFFER.

So the keys of every KJT, which `batch` makes from a layout, are in schema order (a test
holds this).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
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

NO_ID = -(2**31)
ID = np.dtype(np.int32)
Memory = Callable[[int], Tensor]


def heap(nbytes: int) -> Tensor:
    """New memory, (bytes,) uint8."""
    return torch.empty(nbytes, dtype=torch.uint8)


def pinned(nbytes: int) -> Tensor:
    """The same, from which a GPU copies while the host goes on."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def memory_for(device: torch.device) -> Memory:
    """Where batches lie best that go to a device."""
    return pinned if device.type == "cuda" else heap


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
        bounds: what becomes of values out of range, see `data.bounds`.
        repaired: counts them, over all batches of a caller that wants totals.
        extra: the ad's columns of further ads, which belong to no row's user.
        memory: where so many bytes go.

    Raises:
        DataError: a value out of range, naming column, value, file and row; or an id
            behind the end of its sequence, whatever `bounds` says.
    """
    try:
        return _batch(rows, schema, extra, memory)
    except OutOfRangeError as error:
        if error.row >= len(rows.weights):
            raise DataError(f"an ad of the catalog: {error}; prepare again") from None
        if bounds == "raise":
            where = rows.split.locate(int(rows.numbers[error.row]))
            raise DataError(f"{where}: {error}") from None
    counter = RepairCounts() if repaired is None else repaired
    allowed = repair(rows, schema, bounds, counter)
    return collate(allowed, schema, extra=extra, memory=memory)


def _batch(
    rows: StepRows, schema: Schema, extra: ReadOnlyColumns | None, memory: Memory
) -> Batch:
    # In one piece: each is gone over several times, and rows lie far apart.
    labels = {n: np.ascontiguousarray(rows.columns[n]) for n in schema.label_names}
    refuse(labels, map(label_limit, schema.labels))
    ads = rows.columns
    if extra is not None:
        ads = {name: np.append(ads[name], values) for name, values in extra.items()}
    user, ad = _Part(rows.columns, schema, Side.USER), _Part(ads, schema, Side.AD)
    click = labels[schema.label_names[0]]
    anchors = np.flatnonzero((click == 1) & (rows.weights > 0))
    filled_up = _filled_up(len(anchors), user.rows)
    layout = _batch_layout(user.layout(), ad.layout(), len(labels), filled_up)
    batch = Batch(memory(layout.nbytes), layout)
    user.fill(batch.user)
    ad.fill(batch.ad)
    np.stack([*labels.values()], 1, out=batch.labels.numpy(), casting="same_kind")
    batch.weights.numpy()[:] = rows.weights
    batch.ad_ids.numpy()[:] = ads[AD_ID]
    batch.log_q.numpy()[:] = ads[LOG_Q]
    _put_first(batch.anchors, anchors)
    _put_first(batch.anchor_weights, rows.weights[anchors])
    return batch


def _filled_up(anchors: int, rows: int) -> int:
    bucket = anchor_bucket(rows)
    return max(-(-anchors // bucket), 1) * bucket


def most_bytes(schema: Schema, rows: int, ads: int) -> int:
    """Of the buffer of so many rows and ads, whatever stands in them."""
    user, ad = (
        TowerLayout(
            keys=tuple(feature.name for feature in schema.bags_of(side)),
            rows=count,
            dense=len(schema.dense_of(side)),
            histories=tuple(count * f.max_length for f in schema.sequences_of(side)),
        )
        for side, count in ((Side.USER, rows), (Side.AD, ads))
    )
    labels = len(schema.labels)
    return BatchLayout(user, ad, labels, _filled_up(rows, rows)).nbytes


def _put_first(into: Tensor, values: NDArray[Any]) -> None:
    """Write values, and 0 behind them."""
    array = into.numpy()
    array[: len(values)] = values
    array[len(values) :] = 0


def tower_input(columns: ReadOnlyColumns, schema: Schema, side: Side) -> TowerInput:
    """One side: dense (B, F), a bag of ids per row and feature, keys in schema order.

    Raises:
        OutOfRangeError: an id outside its table, a number that is not finite, or an id
            behind the end of its sequence.
    """
    part = _Part(columns, schema, side)
    made = TowerInput(heap(part.layout().nbytes), part.layout())
    part.fill(made)
    return made


@lru_cache(maxsize=64)  # mostly the same: to work it out took a fifth of a batch's time
def _tower_layout(*parts: Any) -> TowerLayout:
    return TowerLayout(*parts)


@lru_cache(maxsize=64)
def _batch_layout(*parts: Any) -> BatchLayout:
    return BatchLayout(*parts)


class _Part:
    """One side's columns on the way to their buffer.

    Raises:
        OutOfRangeError: an id of a history that is out of range or behind its end.
    """

    def __init__(self, columns: ReadOnlyColumns, schema: Schema, side: Side) -> None:
        self.columns, self.schema, self.side = columns, schema, side
        self.sparse, self.dense = schema.sparse_of(side), schema.dense_of(side)
        self.sequences = schema.sequences_of(side)
        self.rows = len(columns[self.sparse[0].name])
        self.histories = [self._history(feature) for feature in self.sequences]

    def layout(self) -> TowerLayout:
        """The room that it takes."""
        return _tower_layout(
            tuple(feature.name for feature in (*self.sparse, *self.sequences)),
            self.rows,
            len(self.dense),
            tuple(len(ids) for ids, _ in self.histories),
        )

    def fill(self, made: TowerInput) -> None:
        """Write all where it belongs, and check it there.

        Raises:
            OutOfRangeError: an id outside its table, or a number that is not finite.
        """
        ids, ones = made.sparse.values().numpy(), len(self.sparse) * self.rows
        table = ids[:ones].reshape(len(self.sparse), self.rows)
        names = [feature.name for feature in self.sparse]
        block = self._block(names)
        if block is not None and block.dtype == ID:
            table[:] = block.T
        else:
            _put_ids(table, [self.columns[name] for name in names])
        dense, names = made.dense.numpy(), [feature.name for feature in self.dense]
        block = self._block(names)
        if block is not None:
            dense[:] = block
        else:
            for i, name in enumerate(names):
                dense[:, i] = self.columns[name]
        right = _fit(table, 0, [f.num_embeddings for f in self.sparse])
        if not (right and np.isfinite(dense).all()):
            self._refuse()
        if self.histories:
            np.concatenate([found for found, _ in self.histories], out=ids[ones:])
            lengths = made.sparse.lengths().numpy()
            lengths[:ones] = 1
            np.concatenate([each for _, each in self.histories], out=lengths[ones:])

    def _block(self, names: list[str]) -> NDArray[Any] | None:
        """These columns as one matrix, (B, names), if they are one."""
        if isinstance(self.columns, Gathered):
            return self.columns.block(names)
        return None

    def _refuse(self) -> None:
        refuse(self.columns, side_limits(self.schema, self.side))

    def _history(self, feature: SequenceFeature) -> tuple[Int32s, Int32s]:
        """Its ids, row after row, and how many each row has, (B,)."""
        table = np.empty((feature.max_length, self.rows), dtype=np.int32)
        _put_ids(table, [self.columns[name] for name in feature.columns])
        if not _fit(table, -1, [feature.num_embeddings] * feature.max_length):
            self._refuse()
        table = np.ascontiguousarray(table.T)
        there = table >= 0
        gaps = (there[:, 1:] > there[:, :-1]).any(axis=1)
        if gaps.any():
            row = int(np.argmax(gaps))
            raise OutOfRangeError(
                f"{feature.name} is {table[row].tolist()}, expected no id behind a -1;"
                " prepare again",
                row,
            )
        return table[there], there.sum(axis=1, dtype=np.int32)


def _put_ids(into: Int32s, columns: list[NDArray[Any]]) -> None:
    """(columns, B); what is no whole number or fits no int32 becomes an id that no
    table has.
    """
    for row, column in zip(into, columns, strict=True):
        if column.dtype != ID:
            column = column.astype(np.float64)
            column[column != np.rint(column)] = NO_ID
            column = column.clip(NO_ID, MOST_ROWS)
        row[:] = column


def _fit(ids: Int32s, low: int, sizes: list[int]) -> bool:
    """Whether all ids of (columns, B) are in range; `low` is 0 or -1."""
    if low:
        return bool((ids.max(axis=1) < sizes).all() and ids.min() >= low)
    # Without its sign a negative id is a large one: one pass and not two.
    return bool((ids.view(np.uint32).max(axis=1) < sizes).all())
