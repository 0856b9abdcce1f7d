"""A loss whose gradients are computed together with it, in the forward pass.

The softmax in blocks overwrites a block's logits when it goes on to the next one, so
autograd could not come back to them. Both gradients are therefore computed on the way,
and the backward pass only multiplies them by the gradient that it is given.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class LossAndGradients(NamedTuple):
    """A softmax cross-entropy and its gradients.

    Attributes:
        total: (), the weighted sum of -log p of the rows' targets.
        grad_rows, grad_vectors: its gradients, (A, D) and (N, D) float32.
    """

    total: Tensor
    grad_rows: Tensor
    grad_vectors: Tensor


Compute = Callable[[Tensor, Tensor, bool], LossAndGradients]


def with_known_gradients(compute: Compute, rows: Tensor, vectors: Tensor) -> Tensor:
    """`compute(rows, vectors, use_bfloat16).total`, differentiable in both factors.

    Inside, both factors are float32 and autocast is off: an autocast product would make
    the logits bfloat16. `use_bfloat16` says whether autocast was on outside.

    Args:
        compute: the loss and its gradients.
        rows: (A, D).
        vectors: (N, D).
    """
    # Asked here, because it is off where `compute` runs.
    use_bfloat16 = torch.is_autocast_enabled(rows.device.type)
    with torch.autocast(rows.device.type, enabled=False):
        total: Tensor = _KnownGradients.apply(  # type: ignore[no-untyped-call]
            rows.float(), vectors.float(), compute, use_bfloat16
        )
    return total


class _KnownGradients(torch.autograd.Function):
    """Forward computes the gradients too; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, vectors: Tensor, compute: Compute, use_bfloat16: bool
    ) -> Tensor:
        result = compute(rows, vectors, use_bfloat16)
        # Constants to autograd: a second derivative would be wrong, and none is taken.
        ctx.save_for_backward(result.grad_rows, result.grad_vectors)
        return result.total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_vectors = ctx.saved_tensors
        (scale,) = grads
        return grad_rows * scale, grad_vectors * scale, None, None
