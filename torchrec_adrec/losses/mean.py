"""The mean over the rows of all ranks.

Gradients are averaged over ranks (by DDP and by the sharded tables), so each rank
returns its sum times W over the global count: the average is then the global mean,
however unevenly the rows that count are spread.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def global_scale(weights: Tensor) -> Tensor:
    """W over the sum of all ranks' weights: a rank's weighted sum times this, averaged
    over ranks, is the global mean (0 if nothing counts).

    Args:
        weights: (B,), 0 for rows that do not count.
    """
    count = weights.sum().detach().clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(count)
    return dist.get_world_size() / count.clamp(min=1e-12)


def global_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over the rows of all ranks, as this rank's share of it.

    Args:
        losses, weights: (B,); a row of weight 0 counts for nothing, whatever its loss.
    """
    kept = torch.where(weights > 0, losses, torch.zeros_like(losses))
    return (kept * weights).sum() * global_scale(weights)
