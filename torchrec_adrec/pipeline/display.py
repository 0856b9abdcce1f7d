"""What `adrec run` shows while it works: one line a stage, live on a terminal.

All else that the stages and their launcher print goes to `RUN/run.log`.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from torchrec_adrec.runtime.logs import OURS
from torchrec_adrec.runtime.status import STATUS_FILE, Status, StatusReader

RUN_LOG = "run.log"
ERRORS_SHOWN = 2  # ranks that fail together may say it in different words
LOG_LINES_SHOWN = 15  # of a stage that ended without a word


class VerboseDisplay:
    """Leaves the terminal to the stages: all that they print is shown, and not kept.

    Attributes:
        output: where the stages' output goes; None: where ours does.
        environment: what a launched stage needs to be shown.
        log_path: the file that holds the details, if there is one.
    """

    output: BinaryIO | None = None
    environment: Mapping[str, str] = {}
    log_path: Path | None = None

    def launched(self, stage: str) -> None:
        """Show that a job was launched whose first stage is this one."""

    def skip(self, stage: str) -> None:
        """Show that a stage has nothing to do."""

    def finish(self, stage: str, figure: str | None = None) -> None:
        """Show that a stage is done, and its main figure."""

    def update(self) -> None:
        """Show what the stages have sent since the last call."""

    def fail(self) -> None:
        """Show why the job has ended."""


class StageLines(VerboseDisplay):
    """Shows one line for each stage: its time and its main figure, and its warnings.

    Args:
        run: the run's folder.
        figure_of: stage -> its main figure, once the stage is done.
        output: the run's log file, open for appending.
        on_figures: takes the figures on the validation rows as training sends them.

    Attributes:
        errors: what the stage that is shown has sent of its end.
    """

    def __init__(
        self,
        run: Path,
        figure_of: Callable[[str], str],
        output: BinaryIO,
        on_figures: Callable[[Status], None] = lambda status: None,
    ) -> None:
        self.log_path = run / RUN_LOG
        self.output = output
        self.status = StatusReader(run / ".status")
        # Absolute: a launcher may start its ranks in another folder.
        self.environment = {STATUS_FILE: str(self.status.path.resolve())}
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.fields[stage]:<10} {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            redirect_stdout=False,  # the tables go there, perhaps to a file
            disable=not self.console.is_terminal,
        )
        self._figure_of, self._on_figures = figure_of, on_figures
        self._shown_warnings: set[str] = set()
        self._finished: set[str] = set()
        self._task: TaskID | None = None
        self._start("")

    def _start(self, stage: str) -> None:
        """Begin to measure a stage."""
        self._stage, self._attempts = stage, 0
        self._started = time.monotonic()
        self._note = ""
        self._losses: list[str] = []
        self.errors: list[str] = []

    def launched(self, stage: str) -> None:
        """Show a live line until the stage is finished."""
        # The job before may have sent statuses after its last one was read.
        self.status.clear()
        assert self.output is not None
        self._log_start = self.output.seek(0, os.SEEK_END)
        self._start(stage)
        self._show_bar("starting")

    def _show_bar(self, title: str, total: int | None = None, done: int = 0) -> None:
        task = self.bar.tasks[0] if self.bar.tasks else None
        if task is None or task.description != title:
            self._hide_bar()
            # A bar of its own for each piece of work: it measures the speed anew.
            self._task = self.bar.add_task(
                title, total=total, stage=self._stage, note=""
            )
        assert self._task is not None
        self.bar.update(self._task, completed=done, note=self._note)

    def _hide_bar(self) -> None:
        if self._task is not None:
            self.bar.remove_task(self._task)
            self.bar.refresh()  # else the next line would be followed by the old bar
        self._task = None

    def skip(self, stage: str) -> None:
        """Say that nothing was done."""
        self._print(f"{stage:<10}          skipped, its inputs have not changed")

    def finish(self, stage: str, figure: str | None = None) -> None:
        """Print the stage's line, once."""
        if stage in self._finished:
            return
        self._finished.add(stage)
        seconds = time.monotonic() - self._started
        parts = [figure if figure is not None else self._figure_of(stage)]
        if self._losses:
            parts.insert(0, " -> ".join(self._losses))
        self._hide_bar()
        self._print(f"{stage:<10} {_duration(seconds):>7}  {', '.join(parts)}")
        self._start("")

    def update(self) -> None:
        """Follow the stages by what they send; their long output is not read."""
        for status in self.status.read():
            # A job says by itself where one of its stages ends and the next begins.
            if status.kind == "begin":
                self._begin(status.text)
            elif status.kind == "end":
                self.finish(status.text)
            elif status.kind == "progress":
                self._advance(status)
            elif status.kind == "warning":
                self.warn(status.text)
            elif status.kind == "figures":
                self._on_figures(status)
            else:
                self.errors.append(status.text)

    def _begin(self, stage: str) -> None:
        if stage != self._stage:
            self._start(stage)
        self._attempts += 1
        self._show_bar("starting")
        if self._attempts > 1:  # what ended the last attempt does not count any more
            self.errors = []
            self._print(f"warning: {stage}: its ranks were started again after a crash")

    def _advance(self, status: Status) -> None:
        self._note = status.note
        self._show_bar(status.text, status.total, status.done)
        word, _, value = status.note.partition(" ")
        if word == "loss":  # the first of the stage stays, the last is replaced
            self._losses = [*self._losses[:1], value] if self._losses else [status.note]

    def warn(self, message: str) -> None:
        """Print a warning once, however many ranks and stages give it."""
        if message not in self._shown_warnings:
            self._shown_warnings.add(message)
            self._print(f"warning: {message}")

    def fail(self) -> None:
        """Print the errors that the stage has sent, or else the end of its output."""
        self.update()
        self.bar.stop()
        errors = list(dict.fromkeys(self.errors))[:ERRORS_SHOWN]
        for text in errors or self._last_lines():
            self._print(text)

    def _last_lines(self) -> list[str]:
        # A signal, or a crash in a library, ends a stage before it can send anything.
        assert self.log_path is not None
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return lines[-LOG_LINES_SHOWN:]

    def _print(self, line: str) -> None:
        # A message is not markup: `[I2]` would vanish. Nor is it cut at 80 columns.
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _WarningLines(logging.Handler):
    """Shows this process's own warnings as it shows those of the stages."""

    def __init__(self, display: StageLines) -> None:
        super().__init__(logging.WARNING)
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        self.display.warn(record.getMessage())


@contextmanager
def stage_lines(
    run: Path,
    figure_of: Callable[[str], str],
    on_figures: Callable[[Status], None] = lambda status: None,
) -> Iterator[StageLines]:
    """Show the stages of a run line by line; append the details to its log file.

    Args:
        run, figure_of, on_figures: as of `StageLines`.
    """
    with (run / RUN_LOG).open("ab") as output:
        now = datetime.now().isoformat(" ", "seconds")
        header = f"==== {now} adrec {' '.join(sys.argv[1:])}\n"
        output.write(header.encode())
        output.flush()
        display = StageLines(run, figure_of, output, on_figures)
        handler = _WarningLines(display)
        logging.getLogger(OURS).addHandler(handler)
        try:
            with display.bar:
                yield display
        finally:
            logging.getLogger(OURS).removeHandler(handler)
            display.status.path.unlink(missing_ok=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes >= 10 else f"{round(seconds)} s"
