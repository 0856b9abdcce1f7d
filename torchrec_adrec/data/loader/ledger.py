"""Which rows training took: a line in the books for every row of every step.

    ledger/steps-00000050-00000100-rank-0-of-2.npy    (steps, B / W) int64 row numbers

A rank writes the steps since the last checkpoint before the next one counts, and the
checkpoint names the segments that led to its weights. So steps that were taken again
after a crash count once, whatever the dead ranks left behind.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.errors import DataError

LEDGER = "ledger"
Segment = tuple[int, int, int]  # steps after the first to the second, on so many ranks


@dataclass
class Ledger:
    """The book of one rank.

    Attributes:
        folder: of all ranks' books.
        step: the last one that is written.
        segments: what leads there.
    """

    folder: Path
    rank: int
    world_size: int
    step: int = 0
    segments: list[Segment] = field(default_factory=list)
    _taken: dict[int, Int64s] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def go_on(self, step: int, segments: Sequence[Sequence[int]]) -> None:
        """Start after the step of a checkpoint, with its segments."""
        self.step = step
        self.segments = [(first, last, size) for first, last, size in segments]

    def take(self, step: int, rows: Int64s) -> None:
        """Note this rank's rows (numbers in the split) of a step; any thread may."""
        with self._lock:
            self._taken[step] = rows

    def keep(self, step: int) -> list[Segment]:
        """Write all steps to `step`; the segments for the checkpoint of that step."""
        if step == self.step:
            return self.segments
        segment = (self.step, step, self.world_size)
        with self._lock:
            rows = [self._taken.pop(s) for s in range(self.step + 1, step + 1)]
        self.folder.mkdir(exist_ok=True)
        path = _file(self.folder, segment, self.rank)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.stack(rows))
        partial.rename(path)
        self.segments, self.step = [*self.segments, segment], step
        return self.segments


def _file(folder: Path, segment: Segment, rank: int) -> Path:
    first, last, size = segment
    return folder / f"steps-{first:08d}-{last:08d}-rank-{rank}-of-{size}.npy"


@dataclass(frozen=True)
class Audit:
    """What became of one epoch's rows.

    Attributes:
        rows: distinct rows that were trained on.
        lost: row numbers of the epoch that were not.
        doubled: row numbers that were taken more than once.
        foreign: row numbers that are not of this epoch's steps.
    """

    epoch: int
    rows: int
    lost: Int64s
    doubled: Int64s
    foreign: Int64s

    @property
    def is_whole(self) -> bool:
        """Every row once."""
        return not (len(self.lost) or len(self.doubled) or len(self.foreign))


def audit(folder: Path, segments: Sequence[Segment], reader: Reader) -> list[Audit]:
    """Compare the books of a finished run with the rows that its epochs hold.

    Args:
        segments: of the run's last checkpoint.
        reader: of the same rows, batch size and seed, for one rank.

    Raises:
        DataError: a step has no entry, or a file is missing or damaged.
    """
    taken, size = _all_steps(folder, segments), reader.steps
    starts = range(0, len(taken), size)
    return [
        _compare(epoch, taken[start : start + size], reader)
        for epoch, start in enumerate(starts)
    ]


def _compare(epoch: int, steps: list[Int64s], reader: Reader) -> Audit:
    """Training that stopped early ends within an epoch: its steps are compared."""
    whole = islice(reader.epoch(epoch), len(steps))
    expected = np.concatenate([rows.numbers for rows in whole])
    distinct, counts = np.unique(np.concatenate(steps), return_counts=True)
    return Audit(
        epoch,
        len(distinct),
        np.setdiff1d(expected, distinct),
        distinct[counts > 1],
        np.setdiff1d(distinct, expected),
    )


def _all_steps(folder: Path, segments: Sequence[Segment]) -> list[Int64s]:
    """The rows of every step, all ranks together."""
    return [rows for segment in _in_order(segments) for rows in _read(folder, segment)]


def _in_order(segments: Sequence[Segment]) -> Iterator[Segment]:
    at = 0
    for segment in segments:
        if segment[0] != at:
            raise DataError(
                f"the ledger has no entry for the steps {at + 1} to {segment[0]};"
                " train.ledger must be on from the first step"
            )
        at = segment[1]
        yield segment


def _read(folder: Path, segment: Segment) -> Int64s:
    """(steps, B) of one segment."""
    first, last, size = segment
    parts = []
    for rank in range(size):
        path = _file(folder, segment, rank)
        try:
            parts.append(np.load(path))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if len(parts[-1]) != last - first:
            raise DataError(
                f"{path} holds {len(parts[-1])} steps, expected {last - first}"
            )
    return np.concatenate(parts, axis=1)
