"""A loss whose gradients are found together with it.

The softmax in blocks forgets a block's logits when it goes on to the next, so it finds
both gradients on the way; the backward pass only scales them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Softmax(NamedTuple):
    """A softmax cross-entropy and its gradients.

    Attributes:
        total: (), the weighted sum of -log p of the rows' own columns.
        grad_rows, grad_vectors: its gradients, (A, D) and (N, D) float32.
    """

    total: Tensor
    grad_rows: Tensor
    grad_vectors: Tensor


Find = Callable[[Tensor, Tensor, bool], Softmax]


def with_known_gradients(find: Find, rows: Tensor, vectors: Tensor) -> Tensor:
    """`find(rows, vectors, low).total`, differentiable in both factors.

    Both are float32 inside, and autocast is off there; `low` says whether it was on.
    """
    low = torch.is_autocast_enabled(rows.device.type)
    with torch.autocast(rows.device.type, enabled=False):
        total: Tensor = _KnownGradients.apply(  # type: ignore[no-untyped-call]
            rows.float(), vectors.float(), find, low
        )
    return total


class _KnownGradients(torch.autograd.Function):
    """Forward finds the gradients too; backward multiplies them."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, vectors: Tensor, find: Find, low: bool
    ) -> Tensor:
        result = find(rows, vectors, low)
        ctx.save_for_backward(result.grad_rows, result.grad_vectors)
        return result.total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_vectors = ctx.saved_tensors
        (scale,) = grads
        return grad_rows * scale, grad_vectors * scale, None, None
