"""Writes columns into the one buffer of a batch; nothing else fills a buffer.

So the keys of every KJT, which `batch` makes from a layout, are in schema order (a test
holds this).
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torchrec_adrec.arrays import ReadOnlyColumns
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
)
from torchrec_adrec.data.loader.parquet import StepRows
from torchrec_adrec.data.loader.side_columns import SideColumns
from torchrec_adrec.data.vectors import FOLDER, expand
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import AD_ID, LOG_Q, USER_KEY, Schema, Side

# Most batches have the same layout; to compute it took a fifth of a batch's time.
_batch_layout = lru_cache(maxsize=64)(BatchLayout)


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
    ads, user_vectors, ad_vectors = rows.columns, *_vectors(rows, schema)
    if extra is not None:
        ad_vectors = {n: np.concatenate([v, extra[n]]) for n, v in ad_vectors.items()}
        others = ((n, v) for n, v in extra.items() if n not in ad_vectors)
        ads = {name: np.append(ads[name], values) for name, values in others}
    # Extra ads have no user: the ad's side is longer than the user's.
    user = SideColumns(rows.columns, schema, Side.USER, user_vectors)
    ad = SideColumns(ads, schema, Side.AD, ad_vectors)
    click = labels[schema.label_names[0]]
    anchors = np.flatnonzero((click == 1) & (rows.weights > 0))
    padded = _padded_anchors(len(anchors), user.rows)
    # The layout is known before anything is written: one allocation for the batch, and
    # every column is copied once, to where it stays.
    keys = rows.columns.get(USER_KEY, ())
    layout = _batch_layout(user.layout(), ad.layout(), len(labels), padded, len(keys))
    batch = Batch(memory(layout.nbytes), layout)
    user.write(batch.user)
    ad.write(batch.ad)
    np.stack([*labels.values()], 1, out=batch.labels.numpy(), casting="same_kind")
    batch.weights.numpy()[:] = rows.weights
    batch.ad_ids.numpy()[:] = ads[AD_ID]
    batch.log_q.numpy()[:] = ads[LOG_Q]
    _write_padded(batch.anchors, anchors)
    _write_padded(batch.anchor_weights, rows.weights[anchors])
    batch.user_keys.numpy()[:] = keys
    return batch


def _vectors(rows: StepRows, schema: Schema) -> list[ReadOnlyColumns]:
    """The vectors of each side, (B, width) by feature."""
    if not schema.vectors:
        return [{}, {}]
    folder = rows.split.data / FOLDER
    return [expand(schema.vectors_of(side), rows.columns, folder) for side in Side]


def _padded_anchors(anchors: int, rows: int) -> int:
    """A for so many clicked rows: the next multiple of the bucket, and never 0."""
    bucket = anchor_bucket(rows)
    return max(-(-anchors // bucket), 1) * bucket


def _write_padded(target: Tensor, values: NDArray[Any]) -> None:
    """Write values, and 0 behind them."""
    array = target.numpy()
    array[: len(values)] = values
    array[len(values) :] = 0


def most_bytes(schema: Schema, rows: int, ads: int, user_keys: int = 0) -> int:
    """The largest buffer that a batch of so many rows and ads can need, in bytes.

    Args:
        schema: of the columns.
        rows: B; all of them may be clicked, and every history may be full.
        ads: N.
        user_keys: B where the batch names its users, else 0.
    """
    user, ad = (
        TowerLayout(
            keys=tuple(feature.name for feature in schema.bags_of(side)),
            rows=count,
            dense=len(schema.dense_names_of(side)),
            histories=tuple(count * f.max_length for f in schema.sequences_of(side)),
            items=schema.items_of(side),
        )
        for side, count in ((Side.USER, rows), (Side.AD, ads))
    )
    labels = len(schema.labels)
    anchors = _padded_anchors(rows, rows)
    return BatchLayout(user, ad, labels, anchors, user_keys).nbytes


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
        columns: (B,) arrays by name, at least those of this side; a vector (B, width).
        schema: orders the keys: sparse features, then sequences.
        side: the tower's.

    Raises:
        OutOfRangeError: an id outside its table, a number that is not finite, or an id
            behind the end of its sequence.
    """
    source = SideColumns(columns, schema, side)
    layout = source.layout()
    tower = TowerInput(heap(layout.nbytes), layout)
    source.write(tower)
    return tower
