"""Vectors of rows, by all ranks together, which look up in sharded tables."""

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
import torch
from torch import Tensor

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.batch import TowerInput
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import share_of
from torchrec_adrec.schema import Schema, Side

NORM_TOLERANCE = 1e-3
BATCH = 4096  # rows that a process encodes at once by itself
Encode = Callable[[TowerInput], Tensor]  # a tower


@torch.no_grad()
def encode(
    tower: Encode,
    frame: pl.DataFrame,
    schema: Schema,
    side: Side,
    similarity: str,
    batch_size: int,
    process: Process,
) -> Float32s:
    """Encode this rank's share of the rows with one tower, (rows, D). Collective.

    Args:
        tower: of that side.
        frame: the encoded columns of all ranks' rows.
        schema: of the data.
        side: which columns are taken.
        similarity: of the towers; the vectors of `cosine` must have length 1.
        batch_size: rows of one step over all ranks.
        process: this rank.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
    """
    local = frame[share_of(len(frame), process)]
    # Rounded up: the largest share, which every rank fills up to, and likewise the
    # rows of one rank in one step.
    share = -(-len(frame) // process.world_size)
    size = -(-batch_size // process.world_size)
    parts = []
    with Progress(f"encoding {side}s", len(frame), "rows") as progress:
        for part in padded(local, frame, share, size):
            parts.append(encode_rows(tower, part, schema, side, process))
            progress.advance(min(size * process.world_size, len(frame) - progress.done))
    vectors = np.concatenate(parts)[: len(local)]
    check_vectors(vectors, side, similarity)
    return vectors


@torch.no_grad()
def encode_rows(
    tower: Encode, rows: pl.DataFrame, schema: Schema, side: Side, process: Process
) -> Float32s:
    """Encode some rows of this rank with one tower, (B, D). Collective.

    Args:
        tower: of that side.
        rows: encoded columns.
        schema: of the data.
        side: which columns are taken.
        process: this rank.
    """
    columns = {name: rows[name].to_numpy() for name in schema.columns_of(side)}
    encoded = tower(tower_input(columns, schema, side).to(process.device))
    return np.asarray(encoded.cpu().numpy())


@torch.inference_mode()
def encode_whole(
    tower: Encode, rows: pl.DataFrame, schema: Schema, side: Side, similarity: str
) -> Float32s:
    """Encode rows with a tower in one piece, by this process alone, (B, D).

    Args:
        tower: of that side.
        rows: encoded columns, of one row or more.
        schema: of the data.
        side: which columns are taken.
        similarity: of the towers.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
    """
    parts = []
    for part in rows.iter_slices(BATCH):
        columns = {n: part[n].to_numpy() for n in schema.columns_of(side)}
        parts.append(tower(tower_input(columns, schema, side)).numpy())
    vectors = np.concatenate(parts)
    check_vectors(vectors, side, similarity)
    return vectors


def check_vectors(vectors: Float32s, side: Side, similarity: str) -> None:
    """Refuse vectors that would win or lose every comparison.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
    """
    norms = np.sqrt(np.vecdot(vectors, vectors))
    wrong = ~np.isfinite(norms)
    if similarity == "cosine":
        wrong |= np.abs(norms - 1) > NORM_TOLERANCE
    if wrong.any():
        raise CheckpointError(
            f"{wrong.sum()} of {len(wrong)} {side} vectors are not finite, or not of"
            f" length 1 (one has {norms[wrong][0]}); train again"
        )


def padded(
    local: pl.DataFrame, frame: pl.DataFrame, share: int, size: int
) -> Iterator[pl.DataFrame]:
    """Cut this rank's rows into batches, filled up to `share` rows in all.

    A lookup in sharded tables waits for every rank, so all must take as many steps as
    the largest share needs. The vectors of the repeated row are dropped again.
    """
    missing = share - len(local)
    if missing:
        local = pl.concat([local, *[frame.head(1)] * missing])
    for first in range(0, share, size):
        yield local[first : first + size]
