"""Which of a step's ads are the negatives of an anchor.

An ad of the anchor's own history and another row of its own ad are never among them,
whatever is chosen here.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Negatives(NamedTuple):
    """The choice of negatives.

    Attributes:
        in_batch: whether they are the ads of the rows too, beside those that were drawn
            in addition.
        hardest: only so many of an anchor's stay, those with the largest logits; None:
            all of them.
        corrects_positive: whether the softmax's correction is that of the clicked ad
            too.
    """

    in_batch: bool = True
    hardest: int | None = None
    corrects_positive: bool = False

    def draws(self, rows: int, ads: int) -> int:
        """How many ads of the global batch are drawn for an anchor, at least 1.

        Args:
            rows: B of a rank.
            ads: N of a rank, those of its rows included.
        """
        size = dist.get_world_size()
        return max(size * ads - 1 if self.in_batch else size * (ads - rows), 1)

    def columns(self, rows: int, ads: int, device: torch.device) -> Tensor:
        """The gathered ads that are negatives, of W * N, rising.

        Args:
            rows: B of a rank.
            ads: N of a rank: those of its rows come first.
            device: of the result.
        """
        size = dist.get_world_size()
        places = torch.arange(size * ads, device=device).view(size, ads)
        return places[:, 0 if self.in_batch else rows :].flatten()

    def hidden(self, rows: int, ads: int, device: torch.device) -> Tensor | None:
        """(W * N,) bool, true for all others than `columns`; None: there are none."""
        if self.in_batch:
            return None
        place = torch.arange(dist.get_world_size() * ads, device=device)
        return place % ads < rows


ALL = Negatives()
