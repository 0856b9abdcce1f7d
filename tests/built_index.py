"""Small catalogs of vectors and the index over them, for the tests of `index/`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np

from torchrec_adrec.export.parts import write_vectors
from torchrec_adrec.index.build import build_files
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.kinds import KINDS, derive_kind
from torchrec_adrec.index.kinds.kind import IndexKind
from torchrec_adrec.index.manifest import EmbeddingManifest
from torchrec_adrec.index.sharded import ShardedIndex, set_search_threads
from torchrec_adrec.runtime.files import Origin, sha256

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


def exported(data: Corpus, folder: Path, rows: int = 500) -> Embeddings:
    """Write vectors as `export` does, in parts of so many rows."""
    folder.mkdir(exist_ok=True)
    order = np.argsort(data.ids)
    parts = {}
    for first in range(0, len(order), rows):
        name = f"part-{first // rows:05d}.parquet"
        some = order[first : first + rows]
        write_vectors(folder / name, data.ids[some], data.vectors[some])
        parts[name] = len(some)
    manifest = EmbeddingManifest(
        checkpoint=Origin(step=1, weights="0"),
        lookups="fp32",
        schema_fingerprint="0",
        similarity="dot",
        dim=D,
        count=N,
        parts=parts,
        files={name: sha256(folder / name) for name in parts},
    )
    manifest.save(folder)
    return Embeddings.open(folder)


@dataclass(frozen=True)
class ThreadRank:
    """One of several ranks that are threads of this process."""

    rank: int
    world_size: int
    meeting: Barrier

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        self.meeting.wait(60)


def on_threads(world_size: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """Let several ranks do the same work; a failure of one breaks the barrier."""
    meeting = Barrier(world_size)

    def begin(number: int) -> Any:
        try:
            return work(ThreadRank(number, world_size, meeting))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(begin, range(world_size)))


def recipe(name: str, nlist: int = 30) -> IndexKind:
    """A kind for these corpora, with so many lists if it has lists."""
    # Seven of eight directions, as four of so few keep too little to find anything.
    build = {"nlist": nlist, "pca": 7}
    names = [key for key in build if key in signature(KINDS[name]).parameters]
    return derive_kind(name, {key: build[key] for key in names}, N, D)


def built(
    name: str,
    shards: int,
    folder: Path,
    data: Corpus,
    nlist: int = 30,
    world_size: int = 1,
) -> ShardedIndex:
    """Build an index of a kind; it searches as thoroughly as it can."""
    kind = recipe(name, nlist)
    folder.mkdir(exist_ok=True)
    embeddings = exported(data, folder)
    layouts = on_threads(
        world_size,
        lambda rank: build_files(kind, embeddings, shards, 0, rank, folder),
    )
    return ShardedIndex.open(folder, layouts[0], kind)
