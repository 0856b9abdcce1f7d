"""Vectors to shard files: one coarse quantiser for all, each rank adds its own."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.index.spec import TRAIN_PER_LIST, IndexSpec

EMPTY = "empty.faiss"


def train_empty(
    spec: IndexSpec, ids: Int64s, vectors: Float32s, seed: int, out: Path
) -> None:
    """Train the coarse quantiser on a sample and write the index without vectors.

    The sample is drawn by id, so it is the same however the vectors lie in files.
    """
    if spec.kind == "exact":
        index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(spec.dim))
    else:
        quantizer = faiss.IndexFlatIP(spec.dim)
        index = faiss.IndexIVFFlat(
            quantizer, spec.dim, spec.nlist, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.seed = seed
        order = np.argsort(ids)
        size = min(len(ids), spec.nlist * TRAIN_PER_LIST)
        sample = np.random.default_rng(seed).choice(len(ids), size, replace=False)
        index.train(vectors[order[np.sort(sample)]])
    faiss.write_index(index, str(out / EMPTY))


def build_shard(
    number: int, shards: int, ids: Int64s, vectors: Float32s, out: Path
) -> None:
    """Write a shard with every `shards`-th vector by rising id, under its own id."""
    index = faiss.read_index(str(out / EMPTY))
    mine = np.argsort(ids)[number::shards]
    index.add_with_ids(np.ascontiguousarray(vectors[mine]), ids[mine])
    faiss.write_index(index, str(out / shard_name(number)))


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.faiss"
