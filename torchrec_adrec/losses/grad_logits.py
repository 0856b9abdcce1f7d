"""The step between the softmax's two products on a device: bias, mask, softmax.

It takes a block's logits and returns the gradient of the loss by them. Two
implementations give the same numbers: a Triton kernel that reads the logits twice and
writes once, and plain torch for devices without Triton and for the tests.
"""

import importlib.util

import torch
from torch import Tensor

from torchrec_adrec.losses.block import Block


def grad_logits(block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradient by the logits, (M, N) in `dtype`, and each target's log p, (M,).

    The gradient is weight * (softmax(logits) - [candidate is the row's target]); log p
    is float32. `block.products` may be overwritten.
    """
    if block.products.is_cuda and importlib.util.find_spec("triton") is not None:
        # Imported late: Triton is not installed where there is no GPU.
        from torchrec_adrec.losses.grad_logits_kernel import grad_logits_by_kernel

        return grad_logits_by_kernel(block, dtype)
    return grad_logits_by_torch(block, dtype)


def grad_logits_by_torch(block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`grad_logits` in operations of fixed shapes: none waits for the device."""
    target = block.target[:, None]
    logits = block.products.mul_(block.scale)
    target_logits = logits.gather(1, target)
    logits -= block.correction
    logits.masked_fill_(block.ids[block.target][:, None] == block.ids, -torch.inf)
    if block.excluded is not None:
        logits.masked_fill_(block.excluded, -torch.inf)
    # Last, since the lines above corrected and masked the target like any candidate.
    logits.scatter_(1, target, target_logits)
    largest = logits.amax(dim=1, keepdim=True)
    probabilities = logits.sub_(largest).exp_()
    total = probabilities.sum(dim=1, keepdim=True)
    log_p = (target_logits - largest - total.log())[:, 0]
    probabilities /= total
    probabilities.scatter_add_(1, target, torch.full_like(target_logits, -1.0))
    return (probabilities * block.weights[:, None]).to(dtype), log_p
