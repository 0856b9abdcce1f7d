"""Vectors of many rows, by all ranks together, which look up in sharded tables."""

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.encode import (
    Encode,
    check_vectors,
    encode_rows,
    padded,
)
from torchrec_adrec.export.parts import Parts
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import share_of
from torchrec_adrec.schema import Schema, Side

WRITERS = 4  # threads that write parts: flushing one waits for the disk
EXAMPLE_USERS = 50  # which every start of a server encodes again


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
    written: deque[Future[None]] = deque()

    def write(number: int, vectors: Float32s) -> None:
        check_vectors(vectors, Side.AD, similarity)
        parts.write(number, vectors)

    # Parts go to the disk while the next one is encoded, and one is written while the
    # others are flushed. No more parts than these are in memory.
    with (
        Progress("encoding ads", left, "rows") as progress,
        ThreadPoolExecutor(WRITERS) as writers,
    ):
        # All ranks take the same steps; one that has no part left encodes one ad.
        for turn in range(-(-len(missing) // process.world_size)):
            number = numbers[turn] if turn < len(numbers) else None
            rows = parts.slice_of(number) if number is not None else slice(0, 1)
            batches = padded(catalog[rows], catalog, parts.rows, size)
            vectors = _joined(
                (encode_rows(tower, b, schema, Side.AD, process) for b in batches),
                parts.rows,
            )[: rows.stop - rows.start]
            if number is not None:
                if len(written) == WRITERS:
                    written.popleft().result()
                written.append(writers.submit(write, number, vectors))
            done = parts.rows * process.world_size
            progress.advance(min(done, left - progress.done))
        for part in written:
            part.result()


def _joined(batches: Iterator[Float32s], rows: int) -> Float32s:
    """Join the vectors of batches, (rows, D).

    Each is copied before the next one is made, which gets its memory and not new pages.
    """
    first = next(batches)
    joined = np.empty((rows, first.shape[1]), dtype=first.dtype)
    joined[: len(first)], done = first, len(first)
    for batch in batches:
        joined[done : done + len(batch)] = batch
        done += len(batch)
    return joined


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
