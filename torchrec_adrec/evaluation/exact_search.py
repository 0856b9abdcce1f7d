"""Every query against every ad, exactly; each rank scores the ads that it holds.

Scores are summed in double precision and rounded to the 24 bits of a float32, so that
neither the blocks of a matrix product nor the number of ranks decide which of two equal
ads is the better one. The 29 bits that this frees hold the ad's place in the catalog: a
list of the largest keys is the same however the ads are spread.

Shape letters: Q queries, B of a chunk, N ads of all ranks, n of this one, K, W ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import DataError

PLACE_BITS = 29
PLACES = (1 << PLACE_BITS) - 1
HIGH, LOW = 1e300, -1e300
CHUNK_QUERIES, BLOCK_ADS = 128, 65_536  # 67 MB of keys at a time


class BlockScorer(Protocol):
    """Scores of queries against this rank's ads, which lie together in the catalog."""

    @property
    def first(self) -> int:
        """Place in the catalog of this rank's first ad."""

    @property
    def count(self) -> int:
        """This rank's ads, n; may be 0."""

    def block(self, queries: slice, ads: slice) -> Tensor:
        """(B, b) float64 of some queries and some of this rank's ads, a new tensor."""

    def pairs(self, queries: Int64s, ads: Int64s) -> Tensor:
        """(P,) float64 of queries with one of this rank's ads each."""


@dataclass(frozen=True)
class ExcludedAds:
    """Ads that are no candidates of a query: those of query q stand in
    `places[starts[q]:starts[q + 1]]`, in any order.
    """

    starts: Int64s
    places: Int64s


@dataclass(frozen=True)
class SearchResult:
    """What a search found, the same on every rank.

    Attributes:
        lists: (Q, K) places in the catalog, best first; of equal scores in an order
            that follows from the places; -1 where there were no more ads.
        ranks: (Q,) of each clicked ad, 1 is the best: as many ads as score at least as
            much, itself among them. A NaN counts as the best of all scores, and as the
            worst if it is the clicked ad's own.
    """

    lists: Int64s
    ranks: Int64s


def search(
    scorer: BlockScorer,
    clicked: Int64s,
    k: int,
    process: Process,
    excluded: ExcludedAds | None = None,
) -> SearchResult:
    """The best ads of every query, and the rank of its clicked ad. Collective.

    No rank holds more than a block of scores of its own ads; what ranks exchange is the
    score of each clicked ad, one count a query and K keys a query and rank.

    Args:
        clicked: (Q,) places in the catalog.
        excluded: a clicked ad is never left out.

    Raises:
        DataError: a clicked ad is in no rank's share, or the catalog is too large.
    """
    device = process.device
    bound = _bounds(scorer, clicked, process)
    above = torch.zeros(len(clicked), dtype=torch.int64, device=device)
    lists = []
    for at in _slices(len(clicked), CHUNK_QUERIES):
        best = torch.empty(len(bound[at]), 0, dtype=torch.float64, device=device)
        for ads in ad_blocks(scorer.count):
            scores = _finite(scorer.block(at, ads).to(device), nan=HIGH)
            _leave_out(scores, at, scorer.first + ads.start, excluded, clicked)
            keys = _keys(scores, scorer.first + ads.start)
            above[at] += (keys >= bound[at, None]).sum(dim=1, dtype=torch.int32)
            best = _largest(torch.cat([best, _largest(keys, k)], dim=1), k)
        lists.append(_places(_merged(best, k, process)))
    dist.all_reduce(above)
    return SearchResult(torch.cat(lists).cpu().numpy(), above.cpu().numpy())


def ad_blocks(count: int) -> Iterator[slice]:
    """The blocks in which a rank's ads are scored."""
    return _slices(count, BLOCK_ADS)


def _slices(rows: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, rows)) for i in range(0, rows, size))


def _bounds(scorer: BlockScorer, clicked: Int64s, process: Process) -> Tensor:
    """(Q,) the least key that counts as at least the clicked ad's; from its owner."""
    mine = np.flatnonzero(
        (clicked >= scorer.first) & (clicked < scorer.first + scorer.count)
    )
    own = torch.zeros(2, len(clicked), dtype=torch.float64, device=process.device)
    scores = scorer.pairs(mine, clicked[mine] - scorer.first).to(process.device)
    at = torch.from_numpy(mine).to(process.device)
    own[0, at] = _finite(scores, nan=LOW)
    own[1, at] = 1
    dist.all_reduce(own)
    if not (own[1] == 1).all():
        lost = int((own[1] != 1).sum())
        raise DataError(
            f"{lost} of {len(clicked)} clicked ads are not in just one rank's share of"
            " the catalog; export again"
        )
    bits = _rounded(own[0])
    # Below zero, a larger place makes a lower key: the lowest that ties is the bound.
    return torch.where(bits < 0, bits | PLACES, bits).view(torch.float64)


def _finite(scores: Tensor, nan: float) -> Tensor:
    """In place; and no -0.0, which would be less than 0.0 as bits."""
    return torch.nan_to_num_(scores, nan=nan, posinf=HIGH, neginf=LOW).add_(0.0)


def _rounded(scores: Tensor) -> Tensor:
    """float64 -> the bits of the nearest float of 24, in place, as int64."""
    half = 1 << (PLACE_BITS - 1)
    return scores.view(torch.int64).add_(half).bitwise_and_(~PLACES)


def _keys(scores: Tensor, first: int) -> Tensor:
    """(B, b) scores and the places behind them, in place: no two of a row are equal."""
    if first + scores.shape[1] > PLACES:
        raise DataError(f"more than {PLACES} ads cannot be told apart")
    places = torch.arange(first, first + scores.shape[1], device=scores.device)
    return _rounded(scores).bitwise_or_(places).view(torch.float64)


def _leave_out(
    scores: Tensor, at: slice, first: int, excluded: ExcludedAds | None, clicked: Int64s
) -> None:
    """Give the ads that are no candidates the lowest score, in place."""
    if excluded is None:
        return
    starts = excluded.starts[at.start : at.stop + 1]
    places = excluded.places[starts[0] : starts[-1]]
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    here = (places >= first) & (places < first + scores.shape[1])
    here &= places != clicked[at][rows]
    scores[rows[here], places[here] - first] = LOW


def _largest(keys: Tensor, k: int) -> Tensor:
    """(B, b) -> (B, min(k, b)), largest first."""
    return torch.topk(keys, min(k, keys.shape[1]), dim=1).values


def _merged(best: Tensor, k: int, process: Process) -> Tensor:
    """This rank's best (B, up to k) -> those of all ranks, (B, k)."""
    own = torch.full((len(best), k), LOW, dtype=torch.float64, device=best.device)
    own[:, : best.shape[1]] = best
    parts = [torch.empty_like(own) for _ in range(process.world_size)]
    dist.all_gather(parts, own)
    return _largest(torch.cat(parts, dim=1), k)


def _places(keys: Tensor) -> Tensor:
    """(B, k) the places behind the keys; -1 for what was left out or not there."""
    places = keys.view(torch.int64) & PLACES
    return torch.where(keys > LOW / 2, places, -1)
