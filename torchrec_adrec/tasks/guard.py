"""Keeps every weight as it is once a loss was not finite, and lets no rank wait.

Tables are updated inside backward, so a loss that is not finite on one rank has to stop
all of them before. Reading the loss first would make the host wait for the device in
every step. So the device itself keeps a note, and gradients that belong to it are
replaced by zeros: row-wise Adagrad then leaves rows and momentum as they are, and the
dense optimizer, which gets the note as its `found_inf`, skips its step and does not
count it. The host reads the note a step later, and then the trainer stops.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Guard(nn.Module):
    """Notes the first loss that is not finite, on any rank.

    Attributes:
        bad: () float32, 1 once a loss was not finite.
        asked_to_stop: whether this rank was asked to stop; it travels to the others
            with the loss, which costs no message of its own.
    """

    bad: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bad", torch.zeros(()), persistent=False)
        self.asked_to_stop = False

    def check_loss(self, loss: Tensor) -> Tensor:
        """Note a step's loss before it goes backward. Collective.

        Args:
            loss: (), this rank's share.

        Returns:
            (3,): the mean loss of all ranks, how many were asked to stop, and `bad`.
        """
        ranks = dist.get_world_size()
        # A graph keeps the answer of the step that it was captured in; it is made for
        # one rank alone, whose trainer does not ask for it here.
        stop = torch.full_like(loss, float(self.asked_to_stop), requires_grad=False)
        reduced = torch.stack([loss.detach(), stop])
        if ranks > 1:
            # The sum is not finite if any rank's loss is not.
            dist.all_reduce(reduced)
            reduced = torch.stack([reduced[0] / ranks, reduced[1]])
        self.bad.logical_or_(~reduced[0].isfinite())
        return torch.cat([reduced, self.bad[None]])

    def guard_gradient(self, vectors: Tensor) -> Tensor:
        """Return looked-up vectors as they are; their gradient will be 0 once a loss
        was bad.
        """
        guarded: Tensor = _GuardedGradient.apply(vectors, self.bad)  # type: ignore[no-untyped-call]
        return guarded


def reading_is_free(device: torch.device) -> bool:
    """Whether the host need not wait for a number of this device."""
    return device.type == "cpu"


class _GuardedGradient(torch.autograd.Function):
    """Decides in backward, when the note of this very step has been made."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, bad: Tensor) -> Tensor:
        ctx.bad = bad
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = grads
        # A device computes both cases: it cannot branch without the host. On a CPU
        # reading is free, and a pass over the gradient is not.
        if reading_is_free(gradient.device):
            return (torch.zeros_like(gradient) if ctx.bad else gradient), None
        return torch.where(ctx.bad > 0, 0.0, gradient), None
