"""Rows with every kind of column, for the tests of this folder."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from torchrec_adrec.batch import Batch
from torchrec_adrec.data.loader.collate import batch_columns
from torchrec_adrec.data.loader.parquet import Reader, StepRows
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)

ROWS = 32
SCHEMA = Schema(
    dense=(
        DenseFeature(name="age", side=Side.USER, source="age"),
        DenseFeature(name="price", side=Side.AD, source="price"),
        DenseFeature(name="visits", side=Side.USER, source="visits"),
    ),
    sparse=(
        SparseFeature(name="z", side=Side.USER, source="z", num_embeddings=13),
        SparseFeature(name="brand", side=Side.AD, source="brand", num_embeddings=7),
        SparseFeature(name="a", side=Side.USER, source="a", num_embeddings=40),
    ),
    sequences=(
        SequenceFeature(
            name="seen", side=Side.USER, source="s", max_length=3, num_embeddings=50
        ),
        SequenceFeature(
            name="bought", side=Side.USER, source="b", max_length=2, num_embeddings=9
        ),
    ),
    labels=(Label(name="click"), Label(name="watched", kind="value", max_value=60)),
)


def history(rng: np.random.Generator, feature: SequenceFeature) -> dict[str, Any]:
    """Ids from the left, of lengths from none to all."""
    lengths = rng.integers(0, feature.max_length + 1, ROWS)
    ids = rng.integers(0, feature.num_embeddings, (feature.max_length, ROWS))
    return {
        name: np.where(i < lengths, ids[i], -1).astype(np.int32)
        for i, name in enumerate(feature.columns)
    }


def columns(seed: int = 0) -> dict[str, Any]:
    """The columns of `ROWS` rows by name, two labels not observed."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        f.name: rng.standard_normal(ROWS).astype(np.float32) for f in SCHEMA.dense
    }
    for f in SCHEMA.sparse:
        values[f.name] = rng.integers(0, f.num_embeddings, ROWS).astype(np.int32)
    for s in SCHEMA.sequences:
        values |= history(rng, s)
    values["click"] = rng.integers(0, 2, ROWS).astype(np.float32)
    values["watched"] = rng.uniform(0, 60, ROWS).astype(np.float32)
    values["watched"][3] = values["click"][4] = np.nan
    values["ad_id"] = rng.integers(0, 2**62, ROWS)
    values["log_q"] = rng.standard_normal(ROWS).astype(np.float32)
    return values


def first_step(values: dict[str, Any], folder: Path) -> StepRows:
    """Columns, written to Parquet in a new folder within `folder`, and read again."""
    split = Path(tempfile.mkdtemp(dir=folder))
    pl.DataFrame(values).write_parquet(split / "part-00000.parquet")
    return next(Reader(Split.open(split), batch_columns(SCHEMA), ROWS).epoch())


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    """Every tensor of a batch, always in the same order."""
    tensors = [batch.labels, batch.ad_ids, batch.log_q, batch.weights]
    tensors += [batch.anchors, batch.anchor_weights]
    for side in (batch.user, batch.ad):
        tensors += [side.dense, side.sparse.values(), side.sparse.lengths()]
    return tensors
