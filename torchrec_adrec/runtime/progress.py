"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

import logging
import os
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from torchrec_adrec.runtime.status import Status, send

LINE_EVERY_S = 5.0
STATUS_EVERY_S = 0.5

log = logging.getLogger(__name__)


class Progress:
    """Counts finished units of one piece of work, with rate and time left.

    Only rank 0 shows them: all ranks take the same steps. Used as::

        with Progress("encoding ads", total=len(ads), unit="rows") as progress:
            for batch in batches:
                encode(batch)
                progress.advance(len(batch))

    Args:
        title: what is being done.
        total: how many units there are, None where nobody knows yet.
        unit: what is counted.
    """

    def __init__(
        self, title: str, total: int | None = None, unit: str = "steps"
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._note = ""
        self._started = self._logged = self._sent = time.monotonic()
        self._is_first_rank = int(os.environ.get("RANK", "0")) == 0
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        # On stderr: what a command prints to stdout may be read by a program.
        console = Console(stderr=True)
        if self._is_first_rank:
            self._send()
        if self._is_first_rank and console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.unit + " {task.fields[note]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def advance(self, count: int, note: str = "") -> None:
        """Count finished units; the last `note` is shown behind them (a loss, say)."""
        is_first_note = bool(note) and not self._note
        self.done += count
        self._note = note or self._note
        if not self._is_first_rank:
            return
        now = time.monotonic()
        # The first loss is kept by whoever shows "from -> to": it may not be skipped.
        if is_first_note or now - self._sent >= STATUS_EVERY_S:
            self._send()
        if self._bar is not None:
            text = f"{self.rate:,.0f}/s {self._note}"
            self._bar.update(self._task, advance=count, note=text)
        elif now - self._logged >= LINE_EVERY_S:
            self._logged = now
            log.info("%s", self._line())

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        # The clock need not have moved since the start.
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def _send(self) -> None:
        self._sent = time.monotonic()
        send(Status("progress", self.title, self.done, self.total, self._note))

    def _line(self) -> str:
        of = f" of {self.total:,}" if self.total else ""
        left = (
            f", {(self.total - self.done) / self.rate:.0f} s left" if self.total else ""
        )
        note = f", {self._note}" if self._note else ""
        speed = f"{self.rate:,.0f}/s"
        return f"{self.title}: {self.done:,}{of} {self.unit}, {speed}{note}{left}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._is_first_rank and kind is None:
            self._send()
            seconds = time.monotonic() - self._started
            log.info(
                "%s: done, %s %s in %.1f s",
                self.title,
                f"{self.done:,}",
                self.unit,
                seconds,
            )
