"""Which ads of a batch are known positives of a row's user: they are no negatives."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_adrec.losses.excluded import ExcludedCandidates
from torchrec_adrec.losses.gather import gather
from torchrec_adrec.losses.matches import matches

FIRST_KNOWN = 2  # ids below say missing or unknown, and equal each other by no meaning


class History(NamedTuple):
    """Items, as ids of one vocabulary.

    Attributes:
        values: the users' items, row after row.
        lengths: (B,) items of each row.
        items: (N,) the item of each ad of this rank.
        longest: items that a row holds at most.
    """

    values: Tensor
    lengths: Tensor
    items: Tensor
    longest: int


def known_positives(
    history: History, anchors: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Pairs to leave out: places among the anchors (rising), and of the gathered ads.

    Args:
        anchors: (A,) rows of this rank.
        first: place of this rank's first ad; an anchor's own ad is never left out.
    """
    known = history.values >= FIRST_KNOWN
    rows = torch.repeat_interleave(history.lengths.long())[known]
    at, column = matches(history.values[known].long(), gather(history.items).long())
    row = rows[at]
    place = torch.full_like(history.lengths, -1, dtype=torch.int64)
    place[anchors] = torch.arange(len(anchors), device=place.device)
    kept = (place[row] >= 0) & (column != row + first)
    return place[row][kept], column[kept]


def excluded(history: History, rows: Tensor) -> ExcludedCandidates:
    """The same for the blocks of a device, where no shape may follow from the data.

    Args:
        rows: (A,) of this rank.
    """
    places = torch.arange(history.longest, device=rows.device)
    lengths = history.lengths.long()
    first = lengths.cumsum(0) - lengths
    nothing = history.values.new_full((1,), -1)
    values = torch.cat([history.values, nothing]).long()
    index = torch.where(
        places < lengths[:, None], first[:, None] + places, len(values) - 1
    )
    items = values[index.index_select(0, rows)]
    known = torch.where(items >= FIRST_KNOWN, items, -1)
    return ExcludedCandidates(known, gather(history.items).long())
