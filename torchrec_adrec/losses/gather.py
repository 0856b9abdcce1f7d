"""What a loss needs of other ranks' rows."""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather as all_gather_with_grad

from torchrec_adrec.losses.chunked import Columns


def gather_ads(
    ad: Tensor, ad_ids: Tensor, log_q: Tensor | None = None
) -> tuple[Columns, int]:
    """The ads of all ranks, and the place of this rank's first one among them.

    The gather of the vectors must carry gradients: with a plain all_gather the ads of
    other ranks would be constants, and the dense gradient wrong by several times its
    size.

    Args:
        ad: (N, D), as many on every rank.
        ad_ids: (N,) int64.
        log_q: (N,), log of each one's share of all that is drawn; the correction of the
            gathered ones is the log of how often each is to be expected among the
            others. None: no correction.
    """
    size, correction = dist.get_world_size(), torch.zeros_like(ad[:, 0])
    if log_q is not None:
        correction = log_q + math.log(max(size * len(ad) - 1, 1))
    if size == 1:
        return Columns(ad, correction, ad_ids), 0
    vectors = torch.cat(all_gather_with_grad(ad))  # type: ignore[no-untyped-call]
    gathered = Columns(vectors, gather(correction.detach()), gather(ad_ids))
    return gathered, dist.get_rank() * len(ad)


def gather(values: Tensor) -> Tensor:
    """(N, ...) of every rank -> (W * N, ...), without gradient."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
