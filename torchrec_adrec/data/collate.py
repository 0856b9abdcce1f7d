"""Columns to tensors. THE ONLY MAKER OF KEYED JAGGED TENSORS.

A sharded `EmbeddingBagCollection` keeps the key order of the first KJT that it sees; a
later one in another order gives wrong vectors and no error. So all of them come from
here, in schema order (a test holds this).
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_adrec.batch import Batch, TowerInput
from torchrec_adrec.data.parquet import Rows
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import AD_ID, LOG_Q, Schema, Side, SparseFeature

Columns = Mapping[str, NDArray[Any]]


class OutOfRangeError(DataError):
    """A value that no table or layer can take; knows its row in the batch."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


def batch_columns(schema: Schema) -> tuple[str, ...]:
    """The columns that `collate` needs."""
    features = [f.name for f in (*schema.dense, *schema.sparse)]
    return (*features, *schema.labels, AD_ID, LOG_Q)


def collate(rows: Rows, schema: Schema) -> Batch:
    """One rank's rows as a `Batch`.

    Raises:
        DataError: an id outside its table or a number that is not finite, naming
            feature, value, file and row.
    """
    try:
        user = tower_input(rows.columns, schema, Side.USER)
        ad = tower_input(rows.columns, schema, Side.AD)
    except OutOfRangeError as error:
        where = rows.split.locate(int(rows.numbers[error.row]))
        raise DataError(f"{where}: {error}") from None
    labels = [_labels(rows, name) for name in schema.labels]
    return Batch(
        user=user,
        ad=ad,
        labels=torch.stack(labels, dim=1),
        weights=torch.from_numpy(rows.weights),
        ad_ids=torch.from_numpy(rows.columns[AD_ID]),
        log_q=torch.from_numpy(rows.columns[LOG_Q]),
    )


def tower_input(columns: Columns, schema: Schema, side: Side) -> TowerInput:
    """One side: dense (B, F), one id per row and sparse feature, keys in schema order.

    Raises:
        OutOfRangeError: an id outside its table or a number that is not finite.
    """
    sparse = schema.sparse_of(side)
    for feature in sparse:
        _check_ids(feature, columns[feature.name])
    ids = np.concatenate([columns[f.name] for f in sparse]).astype(np.int64)
    rows = len(ids) // len(sparse)
    lengths, offsets = _one_each(len(ids))
    kjt = KeyedJaggedTensor(
        keys=[f.name for f in sparse],
        values=torch.from_numpy(ids),
        lengths=lengths,
        offsets=offsets,
        stride=rows,
    )
    return TowerInput(dense=_dense(columns, schema, side, rows), sparse=kjt)


def _dense(columns: Columns, schema: Schema, side: Side, rows: int) -> Tensor:
    dense = schema.dense_of(side)
    out = np.empty((rows, len(dense)), dtype=np.float32)
    for i, feature in enumerate(dense):
        out[:, i] = columns[feature.name]
        finite = np.isfinite(out[:, i])
        if not finite.all():
            row = int(np.argmin(finite))
            raise OutOfRangeError(
                f"{feature.name} is {out[row, i]}, expected a finite number", row
            )
    return torch.from_numpy(out)


def _check_ids(feature: SparseFeature, ids: NDArray[Any]) -> None:
    wrong = ~((ids >= 0) & (ids < feature.num_embeddings))  # a NaN is wrong too
    if ids.dtype.kind not in "iu":
        wrong |= ids != np.floor(ids)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise OutOfRangeError(
            f"{feature.name} is {ids[row]}, expected 0 to {feature.num_embeddings - 1}"
            " (was the data prepared with another vocabulary?)",
            row,
        )


def _labels(rows: Rows, name: str) -> Tensor:
    values = rows.columns[name].astype(np.float32)
    wrong = ~(np.isnan(values) | (values == 0) | (values == 1))
    if wrong.any():
        row = int(np.argmax(wrong))
        where = rows.split.locate(int(rows.numbers[row]))
        raise DataError(f"{where}: label {name} is {values[row]}, expected 0 or 1")
    return torch.from_numpy(values)


@lru_cache(maxsize=16)
def _one_each(count: int) -> tuple[Tensor, Tensor]:
    """Lengths and offsets of `count` bags of one id each; batches share them."""
    return torch.ones(count, dtype=torch.int32), torch.arange(
        count + 1, dtype=torch.int32
    )
