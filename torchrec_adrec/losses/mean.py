"""The weighted mean over the rows of all ranks.

Gradients are averaged over ranks (by DDP and by the sharded tables), so each rank
returns its sum times W over the global weight: the average of the ranks' gradients is
then that of the global mean, however unevenly the rows that count are spread.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Share(NamedTuple):
    """This rank's share of a weighted mean.

    Attributes:
        total: (), the weighted sum of its rows' losses.
        weight: (), the sum of their weights.
    """

    total: Tensor
    weight: Tensor


def share_of(losses: Tensor, weights: Tensor) -> Share:
    """The share of rows (B,), whose losses are finite also where the weight is 0."""
    return Share((losses * weights).sum(), weights.sum())


def global_means(shares: Sequence[Share]) -> Tensor:
    """Each mean over the rows of all ranks, as this rank's share of it, (len(shares),).

    All weights travel in one message; a mean over nothing is 0. Collective.
    """
    weights = torch.stack([share.weight for share in shares]).detach()
    if dist.get_world_size() > 1:
        dist.all_reduce(weights)
    # The clamp is far below any weight: it only makes 0 / 0 into 0.
    scales = dist.get_world_size() / weights.clamp(min=1e-12)
    return torch.stack([share.total for share in shares]) * scales
