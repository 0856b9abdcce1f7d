"""What a loss needs from the rows of other ranks."""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_single_autograd

from torchrec_adrec.losses.chunked import Candidates


def gather_ads(
    ad: Tensor, ad_ids: Tensor, log_q: Tensor | None = None, draws: int = 1
) -> tuple[Candidates, int]:
    """The ads of all ranks, and the position of this rank's first ad among them.

    The gather of the vectors must carry gradients: with a plain all_gather the ads of
    other ranks would be constants, and the dense gradient wrong by several times its
    size.

    Args:
        ad: (N, D), as many on every rank.
        ad_ids: (N,) int64.
        log_q: (N,), log q of each ad, its share of all draws; None: no correction.
        draws: of the global batch. Of so many, draws * q are expected to be this ad;
            the correction is the log of that.
    """
    size, correction = dist.get_world_size(), torch.zeros_like(ad[:, 0])
    if log_q is not None:
        correction = log_q + math.log(draws)
    if size == 1:
        return Candidates(ad, correction, ad_ids), 0
    group = dist.group.WORLD
    assert group is not None
    vectors = all_gather_single_autograd(ad.contiguous(), 0, group)
    # Ids and corrections travel in one message, the corrections as bits of int64: on
    # two cores every further message took a millisecond.
    bits = correction.detach().double().view(torch.int64)
    ids, bits = gather(torch.stack([ad_ids, bits], dim=1)).unbind(1)
    corrections = bits.contiguous().view(torch.float64).to(correction.dtype)
    gathered = Candidates(vectors, corrections, ids.contiguous())
    return gathered, dist.get_rank() * len(ad)


def gather(values: Tensor) -> Tensor:
    """(N, ...) of every rank -> (W * N, ...), without gradient."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
