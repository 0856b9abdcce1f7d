"""The ads of a batch that a row's user clicked before: they are no negatives."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_adrec.losses.excluded import ExcludedCandidates
from torchrec_adrec.losses.gather import gather
from torchrec_adrec.losses.matches import matches

FIRST_KNOWN = 2  # ids 0 and 1 say missing and unknown: two of them are not one item


class History(NamedTuple):
    """The users' earlier items, as ids of the vocabulary that the ads have too.

    Attributes:
        values: the users' items, row after row.
        lengths: (B,) number of items of each row.
        items: (N,) the item of each ad of this rank.
        longest: the most items that a row can hold.
    """

    values: Tensor
    lengths: Tensor
    items: Tensor
    longest: int


def known_positives(
    history: History, anchors: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Pairs to leave out: positions among the anchors (rising) and gathered ads.

    Args:
        history: of all rows of this rank.
        anchors: (A,) rows of this rank.
        first: position of this rank's first gathered ad; an anchor's own ad, which
            stands `row` behind it, is never left out.
    """
    known = history.values >= FIRST_KNOWN
    row_of_item = torch.repeat_interleave(history.lengths.long())[known]
    item, ad = matches(history.values[known].long(), gather(history.items).long())
    row = row_of_item[item]
    # Histories belong to all rows, pairs to anchors only: -1 marks the other rows.
    anchor_of_row = torch.full_like(history.lengths, -1, dtype=torch.int64)
    anchor_of_row[anchors] = torch.arange(len(anchors), device=anchors.device)
    kept = (anchor_of_row[row] >= 0) & (ad != row + first)
    return anchor_of_row[row][kept], ad[kept]


def excluded(history: History, rows: Tensor) -> ExcludedCandidates:
    """The pairs of `known_positives` for devices, with shapes that depend on no data.

    Every history is therefore padded to the longest one possible.

    Args:
        history: of all rows of this rank.
        rows: (A,) the anchors, rows of this rank.
    """
    places = torch.arange(history.longest, device=rows.device)
    lengths = history.lengths.long()
    first = lengths.cumsum(0) - lengths
    padding = history.values.new_full((1,), -1)
    values = torch.cat([history.values, padding]).long()
    # Places behind a row's last item point to the one padding value at the end.
    index = torch.where(
        places < lengths[:, None], first[:, None] + places, len(values) - 1
    )
    items = values[index.index_select(0, rows)]
    known = torch.where(items >= FIRST_KNOWN, items, -1)
    return ExcludedCandidates(known, gather(history.items).long())
