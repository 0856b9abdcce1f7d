"""Places of equal ids, found by sorting: no (A, N) matrix where few are equal."""

import torch
from torch import Tensor


def matches(wanted: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs (i, j) with wanted[i] == ids[j], i rising.

    Comparing 512 ids with 2,048 took .43 ms where this takes .06: few are equal.

    Args:
        wanted: (A,) int64.
        ids: (N,) int64.
    """
    order = ids.argsort()
    rising = ids[order]
    low = torch.searchsorted(rising, wanted)
    counts = torch.searchsorted(rising, wanted, right=True) - low
    places = torch.arange(len(wanted), device=ids.device).repeat_interleave(counts)
    before = (counts.cumsum(0) - counts).repeat_interleave(counts)
    within = torch.arange(len(places), device=ids.device) - before
    return places, order[low.repeat_interleave(counts) + within]
