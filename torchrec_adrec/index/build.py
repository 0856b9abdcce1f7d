"""Vectors to shard files. All shards start from one trained, empty index.

So each list of an inverted file means the same in every shard, and together they answer
as one index would.
"""

from pathlib import Path

import faiss
import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.index.kinds.kind import IndexKind

EMPTY = "empty.faiss"


def train_empty(
    kind: IndexKind, ids: Int64s, vectors: Float32s, seed: int, out: Path
) -> None:
    """Train an index on a sample and write it without vectors.

    Args:
        kind: with its sizes.
        ids, vectors: (N,), (N, D), what was exported, in any order.
        seed: of the sample and the training.
        out: an existing folder; `build_shard` finds the file in it.
    """
    # Drawn in the order of the ids: the ranks of the export decide in which order the
    # vectors come from the files, and must not decide what the index learns from.
    by_id = np.argsort(ids)
    size = min(len(ids), kind.training_rows)
    sample = np.random.default_rng(seed).choice(len(ids), size, replace=False)
    index = faiss.IndexIDMap(kind.create(vectors[by_id[np.sort(sample)]], seed))
    faiss.write_index(index, str(out / EMPTY))


def build_shard(
    number: int, shards: int, ids: Int64s, vectors: Float32s, out: Path
) -> None:
    """Write a shard with every `shards`-th vector by rising id, under its own id.

    Args:
        number: of this shard, from 0.
        shards: how many there are.
        ids, vectors: (N,), (N, D), what was exported, in any order.
        out: the folder that `train_empty` wrote to.
    """
    index = faiss.read_index(str(out / EMPTY))
    rows = np.argsort(ids)[number::shards]
    index.add_with_ids(np.ascontiguousarray(vectors[rows]), ids[rows])
    faiss.write_index(index, str(out / shard_name(number)))


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.faiss"
