"""What stands between the two products of the softmax on a device: bias, mask, softmax.

A block's logits come in, its slopes (the loss's gradient by the logits) go out. Two
ways to the same numbers: one Triton kernel that reads the logits twice and writes once,
and plain torch for devices without Triton and for the tests.
"""

import importlib.util

import torch
from torch import Tensor

from torchrec_adrec.losses.block import Block


def slopes(block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """weight * (softmax(logits) - [column is the row's own]), (M, N) in `dtype`, and
    the log-probability of each row's own column, (M,) float32.

    `block.products` may be written over.
    """
    if block.products.is_cuda and importlib.util.find_spec("triton") is not None:
        from torchrec_adrec.losses.slopes_kernel import slopes_by_kernel

        return slopes_by_kernel(block, dtype)
    return slopes_by_torch(block, dtype)


def slopes_by_torch(block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `slopes`, in operations of fixed shapes: none of them waits for the device."""
    own = block.own[:, None]
    logits = block.products.mul_(block.scale)
    right = logits.gather(1, own)
    logits -= block.correction
    logits.masked_fill_(block.ids[block.own][:, None] == block.ids, -torch.inf)
    if block.excluded is not None:
        logits.masked_fill_(block.excluded, -torch.inf)
    logits.scatter_(1, own, right)
    top = logits.amax(dim=1, keepdim=True)
    probabilities = logits.sub_(top).exp_()
    total = probabilities.sum(dim=1, keepdim=True)
    log_p = (right - top - total.log())[:, 0]
    probabilities /= total
    probabilities.scatter_add_(1, own, torch.full_like(right, -1.0))
    return (probabilities * block.weights[:, None]).to(dtype), log_p
