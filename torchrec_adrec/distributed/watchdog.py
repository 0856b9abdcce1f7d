"""Finds a rank that hangs, says where every rank is, and ends this process.

A rank that stops leaves all others waiting in a collective, and nothing says which.
Here every rank has a thread that puts what its main thread does into the store of the
process group, over a connection of its own. A rank that has made no step for too long
prints the reports of all and ends, so that the launcher starts all of them again.
"""

import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_store

from torchrec_adrec.distributed.process import Process

HUNG = 124  # the exit code of a hung rank, as that of `timeout`
ANSWER_S = 5  # for the store to answer: it may live in the rank that hangs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a rank says of itself.

    Attributes:
        count: number of its reports so far; it no longer grows if the process stopped.
        step: the last step that the rank began.
        batch: short hash of that step's rows; every rank has other rows.
        seconds: since the step began.
        place: the code that its main thread is in.
    """

    count: int
    step: int
    batch: str
    seconds: float
    place: str


def batch_hash(tensors: Sequence[Tensor]) -> str:
    """Hash tensors on the host to eight hex digits, the same in every process."""
    digest = hashlib.blake2b(digest_size=4)
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Watchdog:
    """Watches the main thread of this rank from a thread of its own.

    Args:
        process: this rank.
        hang_seconds: a rank without a heartbeat for so long counts as hung. Less than
            the process group's timeout, or the group gives up first and says less.
        every: seconds between two reports.
        name: of the work, if there are several in this process group: the reports of
            earlier work would be taken for those of a stopped rank.
    """

    def __init__(
        self,
        process: Process,
        hang_seconds: float,
        every: float = 1.0,
        name: str = "",
    ) -> None:
        self.process, self.hang_seconds, self.every = process, hang_seconds, every
        self.name = name
        self._step, self._last_beat = 0, time.monotonic()
        self._batch: tuple[Tensor, ...] = ()
        self._pauses = self._count = 0
        self._ended = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def heartbeat(self, step: int, batch: Sequence[Tensor] = ()) -> None:
        """Note that a step begins. Its rows are hashed only in reports.

        Args:
            step: its number.
            batch: tensors on the host that tell the step's rows, as ad_ids and labels.
        """
        self._step, self._batch = step, tuple(batch)
        self._last_beat = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count no time meanwhile: evaluation, export and saving take long."""
        self._pauses += 1
        try:
            yield
        finally:
            self._last_beat = time.monotonic()
            self._pauses -= 1

    def __enter__(self) -> Self:
        # The store's own connection may be taken by a rank that waits in it.
        connection = _get_default_store().clone()  # type: ignore[attr-defined]
        self._store = PrefixStore(f"watchdog-{self.name}", connection)
        self._store.set_timeout(timedelta(seconds=ANSWER_S))
        self._last_beat = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def _silent_for(self) -> float:
        return 0.0 if self._pauses else time.monotonic() - self._last_beat

    def _watch(self) -> None:
        while not self._ended.wait(self.every):
            self._send_report()
            if self._silent_for > self.hang_seconds:
                self._end_if_hung()

    def _send_report(self) -> None:
        self._count += 1
        report = Report(
            self._count,
            self._step,
            batch_hash(self._batch),
            time.monotonic() - self._last_beat,
            _place(sys._current_frames().get(self._main)),
        )
        self._last_report = report
        try:
            self._store.set(str(self.process.rank), json.dumps(asdict(report)))
        except RuntimeError as error:  # the launcher has gone; training may go on
            log.debug("the store does not answer: %s", error)

    def _end_if_hung(self) -> None:
        before = self._reports()
        # A process that is alive goes on reporting, even if its main thread hangs.
        for _ in range(4):
            self._ended.wait(self.every)
            self._send_report()
        if self._silent_for <= self.hang_seconds:
            return  # it moves again
        reports = self._reports()
        stopped = {
            rank
            for rank, report in reports.items()
            if report is None or report == before[rank]
        }
        speaker = min(set(reports) - stopped)
        if self.process.rank == speaker:
            for line in describe(reports, stopped, self.hang_seconds):
                log.error("%s", line)
        else:
            # The launcher ends all ranks once one has ended: let the speaker finish.
            self._ended.wait(2 * self.every)
        log.error("rank %d ends: hung at step %d", self.process.rank, self._step)
        logging.shutdown()
        os._exit(HUNG)

    def _reports(self) -> dict[int, Report | None]:
        ranks = range(self.process.world_size)
        others = {rank: self._read(rank) for rank in ranks if rank != self.process.rank}
        return others | {self.process.rank: self._last_report}

    def _read(self, rank: int) -> Report | None:
        key = str(rank)
        try:
            if not self._store.check([key]):
                return None
            return Report(**json.loads(self._store.get(key)))
        except RuntimeError:
            return None


def _place(frame: FrameType | None) -> str:
    """Name the innermost call, and the innermost one in this package."""
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        name = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}"
        is_ours = frame.f_globals.get("__name__", "").startswith("torchrec_adrec")
        if is_ours or not names:
            names.append(name)
        if is_ours:
            break
        frame = frame.f_back
    return " < ".join(names)


def describe(
    reports: dict[int, Report | None], stopped: set[int], hang_seconds: float
) -> Iterator[str]:
    """Yield the finding in words, then one line for each rank.

    Args:
        reports: the last one of every rank, None where there is none.
        stopped: ranks whose reports no longer come.
        hang_seconds: for how long there was no step.
    """
    known = {rank: report for rank, report in reports.items() if report is not None}
    first = min(report.step for report in known.values())
    behind = {rank for rank, report in known.items() if report.step == first}
    if stopped:
        finding = f"ranks that do not answer at all: {sorted(stopped)}"
    elif len(behind) < len(known):
        finding = f"ranks that are behind: {sorted(behind)}"
    else:
        finding = f"all ranks are at step {first}; their places say who waits for whom"
    yield f"no step for {hang_seconds:g} s (train.hang_seconds); {finding}"
    for rank, report in sorted(reports.items()):
        yield f"rank {rank}: {_line(report, rank in stopped)}"


def _line(report: Report | None, stopped: bool) -> str:
    if report is None:
        return "never reported, or the store does not answer"
    note = ", DOES NOT ANSWER since" if stopped else ""
    return (
        f"step {report.step}, batch {report.batch}, begun {report.seconds:.0f} s before"
        f" its last report, in {report.place}{note}"
    )
