"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

import logging
import os
import time
import warnings
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

LINE_EVERY_S = 5.0

log = logging.getLogger(__name__)


def setup_logging() -> None:
    """One line format for every stage; under a launcher the rank is named."""
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    who = f"rank {rank}/{size} | " if rank is not None else ""
    logging.basicConfig(
        level=logging.WARNING,  # fbgemm describes every table of every rank at INFO
        format=f"%(asctime)s {who}%(levelname)s %(name)s | %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("torchrec_adrec").setLevel(logging.INFO)
    for chatty in ("torch.fx", "torchrec.distributed.planner"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    # Deprecations inside the libraries' own calls; nothing here can fix them.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="(torch|torchrec)[.]"
    )
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    # TorchRec's tables are ShardedTensors; asking one for its size warns.
    warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)


class Progress:
    """Counts `unit`s of one stage, with rate and time left.

    Only rank 0 speaks: all ranks take the same steps.
    """

    def __init__(
        self, title: str, total: int | None = None, unit: str = "steps"
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._note = ""
        self._started = self._spoken = time.monotonic()
        self._speaks = int(os.environ.get("RANK", "0")) == 0
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        console = Console(stderr=True)
        if self._speaks and console.is_terminal:
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
        """Count finished units; the last `note` stands behind them (a loss, say)."""
        self.done += count
        self._note = note or self._note
        if self._bar is not None:
            text = f"{self.rate:,.0f}/s {self._note}"
            self._bar.update(self._task, advance=count, note=text)
        elif self._speaks and time.monotonic() - self._spoken >= LINE_EVERY_S:
            self._spoken = time.monotonic()
            log.info("%s", self._line())

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

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
        if self._speaks and kind is None:
            took = time.monotonic() - self._started
            log.info(
                "%s: done, %s %s in %.1f s",
                self.title,
                f"{self.done:,}",
                self.unit,
                took,
            )
