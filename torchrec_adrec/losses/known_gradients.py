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
        grad_log_odds: (A,), that by the rows' further terms (`losses.mined`).
    """

    total: Tensor
    grad_rows: Tensor
    grad_vectors: Tensor
    grad_log_odds: Tensor


Compute = Callable[[Tensor, Tensor, bool], LossAndGradients]


def with_known_gradients(
    compute: Compute, rows: Tensor, vectors: Tensor, log_odds: Tensor | None = None
) -> Tensor:
    """`compute(rows, vectors, use_bfloat16).total`, differentiable in both factors.

    Inside, both factors are float32 and autocast is off: an autocast product would make
    the logits bfloat16. `use_bfloat16` says whether autocast was on outside.

    Args:
        compute: the loss and its gradients.
        rows: (A, D).
        vectors: (N, D).
        log_odds: (A,) the rows' further terms, which `compute` reads too; None: none.
    """
    # Asked here, because it is off where `compute` runs.
    use_bfloat16 = torch.is_autocast_enabled(rows.device.type)
    with torch.autocast(rows.device.type, enabled=False):
        total: Tensor = _KnownGradients.apply(  # type: ignore[no-untyped-call]
            rows.float(), vectors.float(), log_odds, compute, use_bfloat16
        )
    return total


class _KnownGradients(torch.autograd.Function):
    """Forward computes the gradients too; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        vectors: Tensor,
        log_odds: Tensor | None,
        compute: Compute,
        use_bfloat16: bool,
    ) -> Tensor:
        result = compute(rows, vectors, use_bfloat16)
        # Constants to autograd: a second derivative would be wrong, and none is taken.
        ctx.save_for_backward(*result[1:])
        ctx.has_log_odds = log_odds is not None
        return result.total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, grad_vectors, grad_log_odds = ctx.saved_tensors
        (scale,) = grads
        by_log_odds = grad_log_odds * scale if ctx.has_log_odds else None
        return grad_rows * scale, grad_vectors * scale, by_log_odds, None, None
