"""Search exactly: every query against every ad, each rank scoring the ads it holds.

Two ads of equal score are common (popularity, copies of an ad), and which of them is
ahead must not depend on the number of ranks or on the blocks of a matrix product. So a
score and a position make one sortable key:

    sign, exponent, 23 bits of the score | 29 bits of the position in the catalog

Scores are summed in double precision and rounded to the 24 significant bits of a
float32, which differences in the order of summation do not reach. The 29 low bits of
the double that this frees hold the ad's position. Keys are doubles that differ for any
two ads, so a list of the largest ones is the same however the ads are spread.

Shape letters: Q queries, B of a chunk, N ads of all ranks, n of this one, b of a block,
K, W ranks.
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

POSITION_BITS = 29
POSITIONS = (1 << POSITION_BITS) - 1
# Finite stand-ins for NaN and infinities, whose keys would not sort.
HIGH, LOW = 1e300, -1e300
CHUNK_QUERIES, BLOCK_ADS = 128, 65_536  # 67 MB of keys at a time
GPU_CHUNKS = 8  # so many of them at once on a GPU, which small products leave idle


class BlockScorer(Protocol):
    """Scores of queries against this rank's ads, which lie together in the catalog."""

    @property
    def first(self) -> int:
        """The position in the catalog of this rank's first ad."""

    @property
    def count(self) -> int:
        """The number of this rank's ads, n; may be 0."""

    def block(self, queries: slice, ads: slice) -> Tensor:
        """Score some queries against some of this rank's ads.

        Returns:
            (B, b) float64, a new tensor: the search overwrites it.
        """

    def pairs(self, queries: Int64s, ads: Int64s) -> Tensor:
        """Score each query against one of this rank's ads, (P,) float64."""


@dataclass(frozen=True)
class ExcludedAds:
    """Ads that are no candidates of a query.

    Attributes:
        starts: (Q + 1,) query q's are `positions[starts[q]:starts[q + 1]]`.
        positions: in the catalog, of one query after the other, in any order.
    """

    starts: Int64s
    positions: Int64s


@dataclass(frozen=True)
class SearchResult:
    """The best ads and the ranks of the clicked ones, the same on every rank.

    Attributes:
        lists: (Q, K) positions in the catalog, best first; of equal scores in an order
            that follows from the positions; -1 where there were no more ads.
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
    """Find the best ads of every query, and the rank of its clicked ad. Collective.

    No rank holds more than a block of scores of its own ads. Ranks exchange the score
    of each clicked ad, one count per query, and K keys per query and rank.

    Args:
        scorer: of this rank's ads.
        clicked: (Q,) positions in the catalog.
        k: K, the length of the lists.
        process: this rank.
        excluded: ads that are no candidates; a clicked ad always is one.

    Raises:
        DataError: a clicked ad is in no rank's share, or the catalog is too large.
    """
    device = process.device
    bound = _bounds(scorer, clicked, process)
    above = torch.zeros(len(clicked), dtype=torch.int64, device=device)
    lists = []
    queries = CHUNK_QUERIES * (1 if device.type == "cpu" else GPU_CHUNKS)
    for chunk in _slices(len(clicked), queries):
        best = torch.empty(len(bound[chunk]), 0, dtype=torch.float64, device=device)
        for ads in ad_blocks(scorer.count):
            scores = _finite(scorer.block(chunk, ads).to(device), nan=HIGH)
            _exclude(scores, chunk, scorer.first + ads.start, excluded, clicked)
            keys = _keys(scores, scorer.first + ads.start)
            above[chunk] += (keys >= bound[chunk, None]).sum(dim=1, dtype=torch.int32)
            best = _largest(torch.cat([best, _largest(keys, k)], dim=1), k)
        lists.append(_positions(_merged(best, k, process)))
    dist.all_reduce(above)
    return SearchResult(torch.cat(lists).cpu().numpy(), above.cpu().numpy())


def ad_blocks(count: int) -> Iterator[slice]:
    """Cut a rank's ads into the blocks in which they are scored."""
    return _slices(count, BLOCK_ADS)


def _slices(rows: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, rows)) for i in range(0, rows, size))


def _bounds(scorer: BlockScorer, clicked: Int64s, process: Process) -> Tensor:
    """Compute the least key that counts as at least the clicked ad's score, (Q,).

    A clicked ad's rank is the number of keys from its bound upward. Ties count against
    it, so the bound is the lowest key of any ad with its score, wherever that ad is:
    position 0 for a positive score.

    Raises:
        DataError: a clicked ad is in no rank's share, or in several.
    """
    local = np.flatnonzero(
        (clicked >= scorer.first) & (clicked < scorer.first + scorer.count)
    )
    # Row 0: the score, from the one rank that holds the ad. Row 1: how many hold it.
    scores_and_holders = torch.zeros(
        2, len(clicked), dtype=torch.float64, device=process.device
    )
    scores = scorer.pairs(local, clicked[local] - scorer.first).to(process.device)
    queries = torch.from_numpy(local).to(process.device)
    # Its own NaN makes a clicked ad the worst; another ad's makes that one the best.
    scores_and_holders[0, queries] = _finite(scores, nan=LOW)
    scores_and_holders[1, queries] = 1
    dist.all_reduce(scores_and_holders)
    scores, holders = scores_and_holders
    if not (holders == 1).all():
        lost = int((holders != 1).sum())
        raise DataError(
            f"{lost} of {len(clicked)} clicked ads are not in just one rank's share of"
            " the catalog; export again"
        )
    bits = _rounded(scores)
    # A double's bits are a magnitude with a sign. Below zero a larger position makes a
    # larger magnitude and thus a lower key, so there the last position is the bound.
    return torch.where(bits < 0, bits | POSITIONS, bits).view(torch.float64)


def _finite(scores: Tensor, nan: float) -> Tensor:
    """Replace NaN, infinities and -0.0, in place.

    As bits -0.0 is below 0.0, though the two are equal.
    """
    return torch.nan_to_num_(scores, nan=nan, posinf=HIGH, neginf=LOW).add_(0.0)


def _rounded(scores: Tensor) -> Tensor:
    """Round float64 to the nearest float of 24 bits, in place; returns the bits."""
    # Half a unit is added to the magnitude before the low bits are cut off: cutting
    # alone would separate two sums that differ by their last bit.
    half = 1 << (POSITION_BITS - 1)
    return scores.view(torch.int64).add_(half).bitwise_and_(~POSITIONS)


def _keys(scores: Tensor, first: int) -> Tensor:
    """Turn (B, b) scores into keys, in place: no two of a row are equal.

    Args:
        scores: finite.
        first: position in the catalog of the first column.

    Raises:
        DataError: the positions need more bits than a key has for them.
    """
    if first + scores.shape[1] > POSITIONS:
        raise DataError(f"more than {POSITIONS} ads cannot be told apart")
    positions = torch.arange(first, first + scores.shape[1], device=scores.device)
    return _rounded(scores).bitwise_or_(positions).view(torch.float64)


def _exclude(
    scores: Tensor,
    chunk: slice,
    first: int,
    excluded: ExcludedAds | None,
    clicked: Int64s,
) -> None:
    """Give the ads that are no candidates the lowest score, in place."""
    if excluded is None:
        return
    starts = excluded.starts[chunk.start : chunk.stop + 1]
    positions = excluded.positions[starts[0] : starts[-1]]
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    in_block = (positions >= first) & (positions < first + scores.shape[1])
    in_block &= positions != clicked[chunk][rows]
    scores[rows[in_block], positions[in_block] - first] = LOW


def _largest(keys: Tensor, k: int) -> Tensor:
    """Keep the largest of each row, (B, b) -> (B, min(k, b)), largest first."""
    return torch.topk(keys, min(k, keys.shape[1]), dim=1).values


def _merged(best: Tensor, k: int, process: Process) -> Tensor:
    """Merge this rank's best, (B, up to k), with those of all ranks, (B, k)."""
    # A rank may hold fewer than k ads; all send tensors of one shape.
    padded = torch.full((len(best), k), LOW, dtype=torch.float64, device=best.device)
    padded[:, : best.shape[1]] = best
    parts = [torch.empty_like(padded) for _ in range(process.world_size)]
    dist.all_gather(parts, padded)
    return _largest(torch.cat(parts, dim=1), k)


def _positions(keys: Tensor) -> Tensor:
    """Read the positions out of keys, (B, k); -1 for padding and excluded ads."""
    positions = keys.view(torch.int64) & POSITIONS
    return torch.where(keys > LOW / 2, positions, -1)
