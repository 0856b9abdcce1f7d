"""Vectors of many rows, by all ranks together, which look up in sharded tables."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.batch import TowerInput
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.export.parts import Parts
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import share_of
from torchrec_adrec.schema import Schema, Side

NORM_TOLERANCE = 1e-3
EXAMPLE_USERS = 50  # which every start of a server encodes again
Encode = Callable[[TowerInput], Tensor]  # a tower


def encode_parts(
    tower: Encode,
    catalog: pl.DataFrame,
    schema: Schema,
    similarity: str,
    batch_size: int,
    parts: Parts,
    process: Process,
) -> None:
    """Encode and write the parts that are not there yet. Collective.

    Args:
        tower: of the ads.
        catalog: the encoded columns of all ads.
        schema: of the data.
        similarity: of the towers.
        batch_size: rows of one step over all ranks.
        parts: of the catalog.
        process: this rank.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
    """
    missing = parts.missing()
    # Nobody may write before all have looked: they share out the same parts.
    process.barrier()
    numbers = missing[share_of(len(missing), process)]
    size = -(-batch_size // process.world_size)
    left = sum(s.stop - s.start for s in map(parts.slice_of, missing))
    written: Future[None] | None = None
    # A part goes to the disk while the next one is encoded.
    with (
        Progress("encoding ads", left, "rows") as progress,
        ThreadPoolExecutor(1) as writer,
    ):
        # All ranks take the same steps; one that has no part left encodes one ad.
        for turn in range(-(-len(missing) // process.world_size)):
            number = numbers[turn] if turn < len(numbers) else None
            rows = parts.slice_of(number) if number is not None else slice(0, 1)
            vectors = [
                encode_rows(tower, batch, schema, Side.AD, process)
                for batch in _padded(catalog[rows], catalog, parts.rows, size)
            ]
            if number is not None:
                whole = np.concatenate(vectors)[: rows.stop - rows.start]
                check_vectors(whole, Side.AD, similarity)
                if written is not None:
                    written.result()
                written = writer.submit(parts.write, number, whole)
            done = parts.rows * process.world_size
            progress.advance(min(done, left - progress.done))
        if written is not None:
            written.result()


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
        for part in _padded(local, frame, share, size):
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


@torch.no_grad()
def encode_examples(
    tower: Encode, data: Path, process: Process
) -> list[dict[str, Any]]:
    """Encode the example users from their raw columns, as serving does. Collective.

    Every rank encodes all of them. Serving compares its own vectors with these before
    it answers.
    """
    encoder = Encoder.load(data)
    users = json.loads((data / "example_users.json").read_text())[:EXAMPLE_USERS]
    raw = [raw_user(user, encoder.schema) for user in users]
    encoded = [encoder.encode(columns, Side.USER) for columns in raw]
    columns = {name: np.concatenate([e[name] for e in encoded]) for name in encoded[0]}
    vectors = tower(tower_input(columns, encoder.schema, Side.USER).to(process.device))
    pairs = zip(users, vectors.tolist(), strict=True)
    return [{"user": user, "vector": vector} for user, vector in pairs]


def check_vectors(vectors: Float32s, side: Side, similarity: str) -> None:
    """Refuse vectors that would win or lose every comparison.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
    """
    norms = np.linalg.norm(vectors, axis=1)
    wrong = ~np.isfinite(norms)
    if similarity == "cosine":
        wrong |= np.abs(norms - 1) > NORM_TOLERANCE
    if wrong.any():
        raise CheckpointError(
            f"{wrong.sum()} of {len(wrong)} {side} vectors are not finite, or not of"
            f" length 1 (one has {norms[wrong][0]}); train again"
        )


def _padded(
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
