"""Which ads of a batch are known positives of a row's user: they are no negatives."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_adrec.losses.gather import gather

FIRST_KNOWN = 2  # ids below say missing or unknown, and equal each other by no meaning


class History(NamedTuple):
    """Items, as ids of one vocabulary.

    Attributes:
        values: the users' items, row after row.
        lengths: (B,) items of each row.
        items: (N,) the item of each ad of this rank.
    """

    values: Tensor
    lengths: Tensor
    items: Tensor


def known_positives(
    history: History, anchors: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Pairs to leave out: places among the anchors (rising), and of the gathered ads.

    Args:
        anchors: (A,) rows of this rank.
        first: place of this rank's first ad; an anchor's own ad is never left out.
    """
    items = gather(history.items)
    order = items.argsort()
    rising = items[order].contiguous()
    rows = torch.repeat_interleave(history.lengths.long())
    low = torch.searchsorted(rising, history.values.contiguous())
    high = torch.searchsorted(rising, history.values.contiguous(), right=True)
    counts = (high - low) * (history.values >= FIRST_KNOWN)
    row = rows.repeat_interleave(counts)
    within = torch.arange(len(row), device=row.device) - (
        counts.cumsum(0) - counts
    ).repeat_interleave(counts)
    column = order[low.repeat_interleave(counts) + within]
    place = torch.full_like(history.lengths, -1, dtype=torch.int64)
    place[anchors] = torch.arange(len(anchors), device=place.device)
    kept = (place[row] >= 0) & (column != row + first)
    return place[row][kept], column[kept]
