"""The exported vectors, which an index is measured by."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from torchrec_adrec.arrays import Bools, Float32s, Int64s
from torchrec_adrec.index.brute_force import BestSoFar, ExactTop, Question, blocks

CHUNK = 64  # queries whose ads are gathered at a time
TIE = 1e-6  # of a score, or absolute if it is below 1 (a cosine always is)


@dataclass(frozen=True)
class Exported:
    """All exported vectors by rising id.

    Attributes:
        ids: (N,).
        vectors: (N, D), in memory or mapped: read in blocks, and never as a whole.
        groups: (N,) the number of the group of ads, by popularity, that each belongs
            to; None where nothing is known of them.
        measured_lengths: (N,) of the vectors, where other ranks have measured theirs.
    """

    ids: Int64s
    vectors: Float32s
    groups: Int64s | None = None
    measured_lengths: Float32s | None = None

    @classmethod
    def by_id(cls, ids: Int64s, vectors: Float32s) -> Self:
        """Sort what was exported in any order."""
        order = np.argsort(ids)
        return cls(ids[order], vectors[order])

    def __len__(self) -> int:
        """Return the number of ads."""
        return len(self.ids)

    def rows(self, ids: Int64s) -> Int64s:
        """Find the rows of exported ids, of any shape."""
        return np.asarray(np.searchsorted(self.ids, ids))

    def exact_top(
        self, queries: Float32s, k: int, eligible: Bools | None = None
    ) -> ExactTop:
        """Compare queries with every ad.

        Args:
            queries: (B, D).
            k: K, at most the number of eligible ads.
            eligible: (N,) which ads may be returned; None: all.
        """
        best = BestSoFar(Question(queries, k, eligible))
        for block in blocks(len(self)):
            best.compare(np.arange(block.start, block.stop), self.vectors[block])
        return best.top

    @cached_property
    def lengths(self) -> Float32s:
        """The length of every vector, (N,)."""
        if self.measured_lengths is not None:
            return self.measured_lengths
        parts = [np.linalg.norm(self.vectors[b], axis=1) for b in blocks(len(self))]
        return np.concatenate(parts)

    def products(self, queries: Float32s, ids: Int64s) -> Float32s:
        """Score each query with its ads, (B, D) and (B, K) to (B, K)."""
        exact = np.empty(ids.shape, dtype=np.float32)
        for chunk in chunks(len(queries)):
            vectors = self.vectors[self.rows(ids[chunk])]
            exact[chunk] = np.einsum("bd,bkd->bk", queries[chunk], vectors)
        return exact

    def hits(self, top: ExactTop, products: Float32s) -> Bools:
        """Tell which returned ads are as good as the K-th best, (B, K).

        By score and not by id: of ads as good as the K-th best any will do, and
        rounding must not decide between them.

        Args:
            top: of the queries.
            products: (B, K) the exact scores of what was returned.
        """
        size = np.maximum(np.abs(products), 1)
        return np.asarray(products >= top.thresholds[:, None] - TIE * size)

    def returned(self, top: ExactTop, ids: Int64s) -> Bools:
        """Tell which of the best ads are among those returned, both (B, K)."""
        # A query's number in front of the row makes one set of all queries' ads.
        first = np.arange(len(ids))[:, None] * len(self)
        return np.isin(top.rows + first, self.rows(ids) + first)


def chunks(rows: int) -> list[slice]:
    """Cut queries into parts whose scores fit into memory."""
    return [slice(first, first + CHUNK) for first in range(0, rows, CHUNK)]
