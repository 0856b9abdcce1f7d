"""Ends a run in good order when it gets SIGTERM or SIGINT.

A launcher sends the signal to every rank, but they see it at different steps. So a rank
only notes it. Its note travels to the others with the loss of a step; all ranks see it
at the same step, agree on the signal, save and leave there.
"""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Notes signals instead of dying of them; for the main thread alone.

    Attributes:
        signal: number of the last one that came, 0 while none has.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._agreed = False
        self._handlers: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal != 0

    def agree(self, device: torch.device) -> int:
        """Return the signal that any rank was sent, or 0, on all alike. Collective."""
        note = torch.tensor(self.signal, device=device)
        dist.all_reduce(note, dist.ReduceOp.MAX)
        self._agreed = bool(note)
        return int(note)

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._note)
        return self

    # A signal may come between any two lines: it is noted here, and nothing else done.
    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        # It came after the last step, so nobody has left for it yet.
        if kind is None and self.requested and not self._agreed:
            signal.raise_signal(self.signal)
