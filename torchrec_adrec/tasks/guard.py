"""No weight changes once a loss was not finite, and no rank waits to find out.

Tables are updated inside backward, so a loss that is not finite on one rank has to stop
all of them before. Reading the loss first would make the host wait for the device in
every step. So the device itself keeps a note, and gradients that belong to it are
replaced by zeros: row-wise Adagrad then leaves rows and momentum as they are, and the
dense optimizer, told by `found_inf`, skips its step and does not count it. The note is
read a step later, and then the trainer stops.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Guard(nn.Module):
    """Notes the first loss that is not finite, on any rank.

    Attributes:
        bad: () float32, 1 once a loss was not finite.
        asked_to_stop: whether this rank was; told to the others with the loss.
    """

    bad: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bad", torch.zeros(()), persistent=False)
        self.asked_to_stop = False

    def look(self, loss: Tensor) -> Tensor:
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
        told = torch.stack([loss.detach(), stop])
        if ranks > 1:
            # The sum is not finite if any rank's loss is not.
            dist.all_reduce(told)
            told = torch.stack([told[0] / ranks, told[1]])
        self.bad.logical_or_(~told[0].isfinite())
        return torch.cat([told, self.bad[None]])

    def pass_on(self, vectors: Tensor) -> Tensor:
        """Looked-up vectors as they are; their gradient is 0 once a loss was bad."""
        passed: Tensor = _Guarded.apply(vectors, self.bad)  # type: ignore[no-untyped-call]
        return passed


def reading_is_free(device: torch.device) -> bool:
    """Whether the host need not wait for a number of this device."""
    return device.type == "cpu"


class _Guarded(torch.autograd.Function):
    """Decides in backward, when the note of this very step has been made."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, bad: Tensor) -> Tensor:
        ctx.bad = bad
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = grads
        if reading_is_free(gradient.device):  # and a pass over the gradient is not
            return (torch.zeros_like(gradient) if ctx.bad else gradient), None
        return torch.where(ctx.bad > 0, 0.0, gradient), None
