"""Scorers of the exact search: the towers' inner product, and popularity alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.evaluation.exact_search import SearchResult


@dataclass(frozen=True)
class InnerProduct:
    """The towers' score: the inner product of a user's and an ad's vector.

    Attributes:
        queries: (Q, D) of all queries.
        ads: (n, D) of this rank's ads.
        first: position in the catalog of the first of them.
    """

    queries: Tensor
    ads: Tensor
    first: int

    @classmethod
    def of(
        cls, queries: Float32s, ads: Float32s, first: int, device: torch.device
    ) -> "InnerProduct":
        """Put arrays on the device.

        Args:
            queries: (Q, D).
            ads: (n, D).
            first: see `InnerProduct`.
            device: where scores are computed.
        """
        on_device = [torch.from_numpy(x).to(device) for x in (queries, ads)]
        return cls(on_device[0], on_device[1], first)

    @property
    def count(self) -> int:
        """The number of this rank's ads."""
        return len(self.ads)

    def block(self, queries: slice, ads: slice) -> Tensor:
        """See `BlockScorer`."""
        return self.queries[queries].double() @ self.ads[ads].double().T

    def pairs(self, queries: Int64s, ads: Int64s) -> Tensor:
        """See `BlockScorer`."""
        # Double here and in `block`: the two must round to the same 24 bits, or a
        # clicked ad would not tie with itself.
        return (self.queries[queries].double() * self.ads[ads].double()).sum(dim=1)


@dataclass(frozen=True)
class Popularity:
    """One list for everyone: the most shown ads first.

    Attributes:
        level: (n,) of each of this rank's ads, how many distinct numbers of impressions
            in the whole catalog are lower: exact as a float of 24 bits, where counts
            of billions would not be.
        first: position in the catalog of this rank's first ad.
    """

    level: Tensor
    first: int

    @classmethod
    def of(
        cls, impressions: Int64s, local: slice, device: torch.device
    ) -> "Popularity":
        """Score this rank's share of the catalog.

        Args:
            impressions: (N,) in training, of the whole catalog.
            local: this rank's ads.
            device: where scores are computed.
        """
        # Levels are those of the whole catalog, so that all ranks' scores compare.
        level = np.unique(impressions, return_inverse=True)[1][local]
        return cls(torch.from_numpy(level.astype(np.float64)).to(device), local.start)

    @property
    def count(self) -> int:
        """The number of this rank's ads."""
        return len(self.level)

    def block(self, queries: slice, ads: slice) -> Tensor:
        """See `BlockScorer`."""
        return self.level[ads].repeat(queries.stop - queries.start, 1)

    def pairs(self, queries: Int64s, ads: Int64s) -> Tensor:
        """See `BlockScorer`."""
        return self.level[ads].clone()


def by_popularity(impressions: Int64s, clicked: Int64s, k: int) -> SearchResult:
    """Find without a search what `search` finds with `Popularity` and no excluded ads.

    Everyone has the same list, so at a million ads and 20,000 queries this saves
    minutes.

    Args:
        impressions: (N,) in training, of the whole catalog.
        clicked: (Q,) positions in the catalog.
        k: length of the list.
    """
    count = len(impressions)
    rising = np.sort(impressions)
    ranks = count - np.searchsorted(rising, impressions[clicked], side="left")
    # The search orders equal scores by position, the last first: so does this.
    best = np.lexsort((np.arange(count), impressions))[::-1][:k]
    best = np.append(best, np.full(k - len(best), -1))
    return SearchResult(np.tile(best, (len(clicked), 1)), ranks)
