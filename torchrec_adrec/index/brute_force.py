"""Brute force: the best ads of users, exactly, which an index is measured by.

All ranks share the work: each compares the ads whose parts of the export are its own,
and the first one merges. Products are computed part by part, in blocks of the same rows
for any number of ranks, so that they are the same to the bit.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torchrec_adrec.arrays import Bools, Float32s, Int64s
from torchrec_adrec.errors import GateError
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.runtime.ranks import Ranks

BLOCK = 16_384  # ads compared at a time: with 1,000 queries 64 MB of scores
VECTORS = "vectors.bin"
CHECKED = 16  # queries of each question whose scores are computed again
ROUNDING = 1e-5  # of both lengths; sums in another order made 3e-7 with a width of 256


@dataclass(frozen=True)
class Question:
    """Users whose best ads are asked for.

    Attributes:
        queries: (B, D).
        k: K, at most the number of eligible ads.
        mask: (N,) by rising id, which ads are eligible; None: all.
    """

    queries: Float32s
    k: int
    mask: Bools | None = None


@dataclass(frozen=True)
class ExactTop:
    """The best ads of each query by brute force.

    Attributes:
        rows: (B, K) of the exported vectors, in no order.
        thresholds: (B,) the score of each query's K-th best ad.
    """

    rows: Int64s
    thresholds: Float32s


class BestSoFar:
    """The best rows of a question's queries among those that were compared."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.rows = np.empty((len(question.queries), 0), dtype=np.int64)
        self.scores = np.empty((len(question.queries), 0), dtype=np.float32)

    def compare(self, rows: Int64s, vectors: Float32s) -> None:
        """Compare the queries with some ads, (n,) and (n, D)."""
        mask = self.question.mask
        for block in blocks(len(rows)):
            numbers, some = rows[block], vectors[block]
            if mask is not None:
                eligible = mask[numbers]
                numbers, some = numbers[eligible], some[eligible]
            products = self.question.queries @ some.T
            self.merge(np.broadcast_to(numbers, products.shape), products)

    def merge(self, rows: Int64s, scores: Float32s) -> None:
        """Take in the rows and scores of other ads, both (B, n)."""
        self.rows = np.hstack([self.rows, rows])
        self.scores = np.hstack([self.scores, scores])
        k = self.question.k
        if self.rows.shape[1] > k:
            best = np.argpartition(-self.scores, k - 1, axis=1)[:, :k]
            self.rows = np.take_along_axis(self.rows, best, 1)
            self.scores = np.take_along_axis(self.scores, best, 1)

    @property
    def top(self) -> ExactTop:
        """The answer, when all ads were compared."""
        return ExactTop(self.rows, self.scores.min(axis=1))


@dataclass(frozen=True)
class Answers:
    """What brute force over an export says.

    Attributes:
        tops: of each question.
        lengths: (N,) of the vectors.
        vectors: (N, D) in a file that is mapped and has no name: those of some ads can
            be looked at, and only they are read.
    """

    tops: list[ExactTop]
    lengths: Float32s
    vectors: Float32s


def brute_force(
    embeddings: Embeddings, questions: Sequence[Question], ranks: Ranks, out: Path
) -> Answers | None:
    """Compare queries with all exported ads, each rank with its own. Collective.

    Args:
        embeddings: what was exported.
        questions: the same on all ranks.
        ranks: the processes that share the work.
        out: a folder that all of them see, on a disk with 4 x N x D bytes to spare.

    Returns:
        On the first rank all answers, on the others None.

    Raises:
        ManifestError: a part does not hold what the manifest says.
        GateError: the ranks have not done the same work.
    """
    bests = [BestSoFar(question) for question in questions]
    lengths = [np.empty(0, dtype=np.float32)]
    parts = embeddings.share(ranks.rank, ranks.world_size)
    # Opened without cutting it off: the others write their rows into the same file.
    descriptor = os.open(out / VECTORS, os.O_WRONLY | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.seek(int(embeddings.starts[parts.start]) * embeddings.manifest.dim * 4)
        for rows, _, vectors in embeddings.read(parts):
            vectors.tofile(file)
            lengths.append(np.linalg.norm(vectors, axis=1))
            for best in bests:
                best.compare(rows, vectors)
    np.savez(
        out / _answer_name(ranks.rank),
        np.concatenate(lengths),
        *(array for best in bests for array in (best.rows, best.scores)),
    )
    ranks.barrier()
    return _merged(embeddings, questions, ranks, out) if ranks.is_first else None


def _merged(
    embeddings: Embeddings, questions: Sequence[Question], ranks: Ranks, out: Path
) -> Answers:
    """Merge what every rank wrote, and remove its files."""
    bests, lengths = [BestSoFar(question) for question in questions], []
    for rank in range(ranks.world_size):
        path = out / _answer_name(rank)
        with np.load(path) as arrays:
            lengths.append(arrays["arr_0"])
            for number, best in enumerate(bests):
                places = 2 * number + 1, 2 * number + 2
                best.merge(*(arrays[f"arr_{place}"] for place in places))
        path.unlink()
    path, shape = out / VECTORS, (embeddings.count, embeddings.manifest.dim)
    vectors = np.memmap(path, np.float32, "r", shape=shape)
    path.unlink()  # the disk is free again when the mapping goes
    for best in bests:
        _check_products(best, vectors)
    return Answers([best.top for best in bests], np.concatenate(lengths), vectors)


def _check_products(best: BestSoFar, vectors: Float32s) -> None:
    """Compare scores of some queries with the products that they are said to be.

    The recall of an index is a share of these ads. If a rank had searched for other
    users, or written its vectors in another place, it would be a share of other ads.

    Raises:
        GateError: they are none.
    """
    queries, ads = best.question.queries[:CHECKED], vectors[best.rows[:CHECKED]]
    error = np.abs(np.einsum("bd,bkd->bk", queries, ads) - best.scores[:CHECKED])
    lengths = np.linalg.norm(ads, axis=2) * np.linalg.norm(queries, axis=1)[:, None]
    # Not `error > rounding`, which is false for NaN; of that the gate tells more.
    wrong = ~(error <= ROUNDING * lengths) & np.isfinite(lengths)
    if wrong.any():
        raise GateError(
            f"brute force names {wrong.sum()} of {wrong.size} ads with scores that are"
            f" not their products with the users, the furthest {error[wrong].max():.2g}"
            " away: the ranks have searched for other users, or read other ads; nothing"
            " was published"
        )


def _answer_name(rank: int) -> str:
    return f"brute-force-{rank:05d}.npz"


def blocks(rows: int) -> Iterator[slice]:
    """Cut ads into blocks that fit into memory."""
    return (slice(i, min(i + BLOCK, rows)) for i in range(0, rows, BLOCK))
