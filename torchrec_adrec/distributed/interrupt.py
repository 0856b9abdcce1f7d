"""An orderly end: SIGTERM or SIGINT asks, the trainer agrees, saves and leaves.

A launcher sends the signal to every rank, but they see it at different steps. So a rank
only notes it; the trainer takes the largest note of all ranks after each step (one
`all_reduce` of a number, 0 on most days), and all save and leave at the same one.
"""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Notes signals instead of dying of them. For the main thread.

    Attributes:
        signal: number of the last one that came, 0 while none has.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._agreed = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal != 0

    def agreed(self, device: torch.device) -> int:
        """The signal that any rank was sent, or 0; the same on all. Collective."""
        note = torch.tensor(self.signal, device=device)
        dist.all_reduce(note, dist.ReduceOp.MAX)
        self._agreed = bool(note)
        return int(note)

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if kind is None and self.requested and not self._agreed:
            signal.raise_signal(self.signal)  # it came after the last step
