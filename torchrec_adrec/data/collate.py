"""Columns to tensors. THE ONLY MAKER OF KEYED JAGGED TENSORS.

A sharded `EmbeddingBagCollection` keeps the key order of the first KJT that it sees; a
later one in another order gives wrong vectors and no error. So all of them come from
here, in schema order (a test holds this).
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_adrec.batch import Batch, TowerInput
from torchrec_adrec.data.bounds import (
    Mended,
    OutOfRangeError,
    label_limit,
    mend,
    refuse,
    side_limits,
)
from torchrec_adrec.data.parquet import Rows
from torchrec_adrec.data_config import Bounds
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import (
    AD_ID,
    LOG_Q,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)

NO_ID = -(2**31)
Columns = Mapping[str, NDArray[Any]]


def batch_columns(schema: Schema) -> tuple[str, ...]:
    """The columns that `collate` needs."""
    sides = (schema.columns_of(side) for side in Side)
    return (*(n for names in sides for n in names), *schema.label_names, AD_ID, LOG_Q)


def collate(
    rows: Rows,
    schema: Schema,
    bounds: Bounds = "raise",
    mended: Mended | None = None,
    extra: Columns | None = None,
) -> Batch:
    """One rank's rows as a `Batch`.

    Args:
        bounds: what becomes of values out of range, see `data.bounds`.
        mended: counts them, over all batches of a caller that wants totals.
        extra: the ad's columns of further ads, which belong to no row's user.

    Raises:
        DataError: a value out of range, naming column, value, file and row; or an id
            behind the end of its sequence, whatever `bounds` says.
    """
    try:
        return _batch(rows, schema, extra)
    except OutOfRangeError as error:
        if error.row >= len(rows.weights):
            raise DataError(f"an ad of the catalog: {error}; prepare again") from None
        if bounds == "raise":
            where = rows.split.locate(int(rows.numbers[error.row]))
            raise DataError(f"{where}: {error}") from None
    counter = Mended() if mended is None else mended
    return collate(mend(rows, schema, bounds, counter), schema, extra=extra)


def _batch(rows: Rows, schema: Schema, extra: Columns | None) -> Batch:
    refuse(rows.columns, map(label_limit, schema.labels))
    labels = [rows.columns[name] for name in schema.label_names]
    ads = rows.columns
    if extra is not None:
        ads = {name: np.append(ads[name], values) for name, values in extra.items()}
    return Batch(
        user=tower_input(rows.columns, schema, Side.USER),
        ad=tower_input(ads, schema, Side.AD),
        labels=torch.from_numpy(np.stack(labels, axis=1).astype(np.float32)),
        weights=torch.from_numpy(rows.weights),
        ad_ids=torch.from_numpy(np.ascontiguousarray(ads[AD_ID])),
        log_q=torch.from_numpy(np.ascontiguousarray(ads[LOG_Q])),
    )


def tower_input(columns: Columns, schema: Schema, side: Side) -> TowerInput:
    """One side: dense (B, F), a bag of ids per row and feature, keys in schema order.

    Raises:
        OutOfRangeError: an id outside its table, a number that is not finite, or an id
            behind the end of its sequence.
    """
    sparse, sequences = schema.sparse_of(side), schema.sequences_of(side)
    lists = tuple(name for f in sequences for name in f.columns)
    ids = _ids([columns[n] for n in (*(f.name for f in sparse), *lists)])
    dense = _dense([columns[f.name] for f in schema.dense_of(side)], ids.shape[1])
    if not (_fit(ids, sparse, sequences) and np.isfinite(dense).all()):
        refuse(columns, side_limits(schema, side))
    values, lengths, offsets = _one_each(ids[: len(sparse)])
    if sequences:
        histories = _histories(ids[len(sparse) :], sequences)
        values = torch.cat([values, *(v for v, _ in histories)])
        lengths = torch.cat([lengths, *(n for _, n in histories)])
        offsets = None
    kjt = KeyedJaggedTensor(
        keys=[f.name for f in (*sparse, *sequences)],
        values=values,
        lengths=lengths,
        offsets=offsets,
        stride=ids.shape[1],
    )
    return TowerInput(dense=torch.from_numpy(dense), sparse=kjt)


def _ids(columns: list[NDArray[Any]]) -> NDArray[np.int64]:
    """(columns, B); what is no whole number becomes an id that no table has."""
    out = np.empty((len(columns), len(columns[0])), dtype=np.int64)
    for i, column in enumerate(columns):
        if column.dtype.kind not in "iu":
            column = np.where(column == np.rint(column), column, NO_ID)
        out[i] = column
    return out


def _dense(columns: list[NDArray[Any]], rows: int) -> NDArray[np.float32]:
    out = np.empty((rows, len(columns)), dtype=np.float32)
    for i, column in enumerate(columns):
        out[:, i] = column
    return out


def _fit(
    ids: NDArray[np.int64],
    sparse: tuple[SparseFeature, ...],
    sequences: tuple[SequenceFeature, ...],
) -> bool:
    """Whether all ids are in range: two passes over one matrix, not two a column."""
    sizes = [f.num_embeddings for f in sparse]
    lows = [0] * len(sparse)
    for f in sequences:
        sizes += [f.num_embeddings] * f.max_length
        lows += [-1] * f.max_length
    return bool((ids.max(axis=1) < sizes).all() and (ids.min(axis=1) >= lows).all())


def _histories(
    ids: NDArray[np.int64], features: tuple[SequenceFeature, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Values and lengths (B,) of each sequence, from its rows of the id matrix."""
    found = []
    ends = accumulate(f.max_length for f in features)
    for feature, end in zip(features, ends, strict=True):
        part = np.ascontiguousarray(ids[end - feature.max_length : end].T)
        there = part >= 0
        gaps = (there[:, 1:] > there[:, :-1]).any(axis=1)
        if gaps.any():
            row = int(np.argmax(gaps))
            raise OutOfRangeError(
                f"{feature.name} is {part[row].tolist()}, expected no id behind a -1;"
                " prepare again",
                row,
            )
        lengths = there.sum(axis=1, dtype=np.int32)
        found.append((torch.from_numpy(part[there]), torch.from_numpy(lengths)))
    return found


def _one_each(ids: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values, lengths and offsets of bags of one id each."""
    return torch.from_numpy(ids.reshape(-1)), *_ones(ids.size)


@lru_cache(maxsize=16)
def _ones(count: int) -> tuple[Tensor, Tensor]:
    """Lengths and offsets of `count` bags of one id each; batches share them."""
    return torch.ones(count, dtype=torch.int32), torch.arange(
        count + 1, dtype=torch.int32
    )
