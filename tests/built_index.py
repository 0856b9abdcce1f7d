"""Small catalogs of vectors and the index over them, for the tests of `index/`."""

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_adrec.index.build import build_shard, shard_name, train_empty
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.kinds import KINDS, derive_kind
from torchrec_adrec.index.kinds.kind import IndexKind
from torchrec_adrec.index.sharded import ShardedIndex, set_search_threads

N, D, K = 3000, 8, 50
# FAISS's threads wait by spinning: on a busy machine two took 30 times as long as one.
set_search_threads(1)


@dataclass(frozen=True)
class Corpus:
    """Ids of 63 bits in no order, vectors of many lengths, and queries.

    An index by L2 orders such vectors otherwise than one by inner product does.
    """

    ids: Any
    vectors: Any
    queries: Any

    def exported(self) -> Exported:
        """As the gate takes them."""
        return Exported.by_id(self.ids, self.vectors)

    def exact_top(self, k: int = K) -> tuple[Any, Any]:
        """Ids and scores by brute force, best first."""
        scores = self.queries @ self.vectors.T
        best = np.argsort(-scores, axis=1)[:, :k]
        return self.ids[best], np.take_along_axis(scores, best, 1)


def corpus() -> Corpus:
    """Directions drawn uniformly, which is the hardest case for any index."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N, D)).astype(np.float32)
    vectors *= rng.uniform(0.5, 2, (N, 1)).astype(np.float32)
    ids = rng.choice(2**62, N, replace=False) + 2**61
    return Corpus(ids, vectors, rng.normal(size=(40, D)).astype(np.float32))


def clustered_corpus() -> Corpus:
    """30 clusters of about 100 ads, and users near to them, as towers make them."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(30, D))
    near = [
        centres[rng.integers(30, size=rows)] + rng.normal(scale=0.2, size=(rows, D))
        for rows in (N, 40)
    ]
    vectors, queries = (part.astype(np.float32) for part in near)
    return Corpus(rng.choice(2**62, N, replace=False) + 2**61, vectors, queries)


def recipe(name: str, nlist: int = 30) -> IndexKind:
    """A kind for these corpora, with so many lists if it has lists."""
    has_lists = "nlist" in signature(KINDS[name]).parameters
    return derive_kind(name, {"nlist": nlist} if has_lists else {}, N, D)


def built(
    name: str, shards: int, folder: Path, data: Corpus, nlist: int = 30
) -> ShardedIndex:
    """Build an index of a kind; it searches as thoroughly as it can."""
    kind = recipe(name, nlist)
    folder.mkdir(exist_ok=True)
    train_empty(kind, data.ids, data.vectors, 0, folder)
    for number in range(shards):
        build_shard(number, shards, data.ids, data.vectors, folder)
    return ShardedIndex.open(folder, map(shard_name, range(shards)), kind)
