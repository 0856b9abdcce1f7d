"""Brings tensors of a step to the host one step later, so that nobody waits for them.

Reading a tensor of a GPU waits until everything that was queued before it is done. So a
copy is queued behind the step and read when the next step is queued too: the device
always has work.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor


class HostCopy(NamedTuple):
    """Tensors of a step, on the host.

    Attributes:
        step: its number.
        tensors: in the order in which they were asked for.
    """

    step: int
    tensors: tuple[Tensor, ...]


class LateReader:
    """Copies tensors to the host, and hands the copies out once they are complete."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._queue: deque[tuple[HostCopy, torch.cuda.Event | None]] = deque()

    def ask(self, step: int, *tensors: Tensor) -> None:
        """Queue the copies of a step's tensors."""
        if self.device.type != "cuda":
            self._queue.append((HostCopy(step, tensors), None))
            return
        copies = []
        for tensor in tensors:
            # Only into pinned memory does a copy run beside the host.
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies.append(pinned.copy_(tensor, non_blocking=True))
        event = torch.cuda.Event()
        event.record()
        self._queue.append((HostCopy(step, tuple(copies)), event))

    def read(self, before: int | None = None) -> HostCopy | None:
        """Return the oldest copies that were not read yet, or None.

        Args:
            before: only of a step below this one; None: of any.
        """
        if not self._queue:
            return None
        copy, event = self._queue[0]
        if before is not None and copy.step >= before:
            return None
        self._queue.popleft()
        if event is not None:
            event.synchronize()
        return copy
