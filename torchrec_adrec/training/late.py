"""What the host learns of a step, a step later.

Reading a tensor of a GPU waits until everything that was queued before it is done. So
a copy is queued behind the step and read when the next one is queued too: the device
always has work.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor


class Late(NamedTuple):
    """Tensors of a step, on the host.

    Attributes:
        number: of the step.
        tensors: in the order they were asked for.
    """

    number: int
    tensors: tuple[Tensor, ...]


class LateReader:
    """Copies to the host that nobody waits for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._waiting: deque[tuple[Late, torch.cuda.Event | None]] = deque()

    def ask(self, number: int, *tensors: Tensor) -> None:
        """Queue the copies of a step's tensors."""
        if self.device.type != "cuda":
            self._waiting.append((Late(number, tensors), None))
            return
        copies = []
        for tensor in tensors:
            room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies.append(room.copy_(tensor, non_blocking=True))
        event = torch.cuda.Event()
        event.record()
        self._waiting.append((Late(number, tuple(copies)), event))

    def read(self, before: int | None = None) -> Late | None:
        """The oldest copies that were not read, of a step below `before`, or None."""
        if not self._waiting:
            return None
        late, event = self._waiting[0]
        if before is not None and late.number >= before:
            return None
        self._waiting.popleft()
        if event is not None:
            event.synchronize()
        return late
