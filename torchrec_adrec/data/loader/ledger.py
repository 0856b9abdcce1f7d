"""A ledger of the rows that training took: the numbers of every step's rows.

    ledger/steps-00000050-00000100-rank-0-of-2.npy    (steps, B / W) int64 row numbers

Before a checkpoint counts, each rank writes the steps since the one before it. The
checkpoint names the segments that led to its weights, so steps that were taken again
after a crash count once, whatever the dead ranks had written.
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
Segment = tuple[int, int, int]
"""(first, last, ranks): the steps after `first`, up to `last`, on so many ranks."""


@dataclass
class Ledger:
    """The ledger of one rank.

    Attributes:
        folder: of all ranks' files.
        rank: of this process.
        world_size: number of ranks.
        step: the last step that is written.
        segments: those that lead to this step.
    """

    folder: Path
    rank: int
    world_size: int
    step: int = 0
    segments: list[Segment] = field(default_factory=list)
    _rows_by_step: dict[int, Int64s] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def go_on(self, step: int, segments: Sequence[Sequence[int]]) -> None:
        """Start after the step of a checkpoint, with its segments."""
        self.step = step
        self.segments = [(first, last, size) for first, last, size in segments]

    def take(self, step: int, rows: Int64s) -> None:
        """Record this rank's rows of a step, as numbers in the split.

        Any thread may call this, also while another one calls `keep`.
        """
        with self._lock:
            self._rows_by_step[step] = rows

    def keep(self, step: int) -> list[Segment]:
        """Write all steps up to `step`; returns the segments for its checkpoint."""
        # A second checkpoint of the same step has nothing to add.
        if step == self.step:
            return self.segments
        segment = (self.step, step, self.world_size)
        # Rows of later steps stay: the reader is ahead of the training.
        with self._lock:
            steps = range(self.step + 1, step + 1)
            rows = [self._rows_by_step.pop(each) for each in steps]
        self.folder.mkdir(exist_ok=True)
        path = _file(self.folder, segment, self.rank)
        # Renamed when complete: a file that is cut short never has the right name.
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
    """How one epoch's rows were trained on.

    Attributes:
        epoch: counted from 0.
        rows: distinct rows that were trained on.
        lost: row numbers of the epoch that were not.
        doubled: row numbers that were taken more than once.
        foreign: row numbers that do not belong to this epoch's steps.
    """

    epoch: int
    rows: int
    lost: Int64s
    doubled: Int64s
    foreign: Int64s

    @property
    def is_whole(self) -> bool:
        """Whether every row was taken once, and no other."""
        return not (len(self.lost) or len(self.doubled) or len(self.foreign))


def audit(folder: Path, segments: Sequence[Segment], reader: Reader) -> list[Audit]:
    """Compare the ledger of a finished run with the rows that its epochs hold.

    Args:
        folder: of all ranks' files.
        segments: of the run's last checkpoint.
        reader: of the same rows, batch size and seed, for one rank.

    Raises:
        DataError: a step has no entry, or a file is missing or damaged.
    """
    steps = _all_steps(folder, segments)
    starts = range(0, len(steps), reader.steps)
    return [
        _compare(epoch, steps[start : start + reader.steps], reader)
        for epoch, start in enumerate(starts)
    ]


def _compare(epoch: int, steps: list[Int64s], reader: Reader) -> Audit:
    # Training that stopped early ends within an epoch: only its steps are expected.
    complete = islice(reader.epoch(epoch), len(steps))
    expected = np.concatenate([rows.numbers for rows in complete])
    # Sets are compared: within an epoch the order of the ranks' rows says nothing.
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
    """The segments, as long as each begins where the one before it ends."""
    end = 0
    for segment in segments:
        if segment[0] != end:
            raise DataError(
                f"the ledger has no entry for the steps {end + 1} to {segment[0]};"
                " train.ledger must be on from the first step"
            )
        end = segment[1]
        yield segment


def _read(folder: Path, segment: Segment) -> Int64s:
    """The row numbers of one segment, (steps, B)."""
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
    # A rank's rows are a slice of each step: side by side they are the step's rows.
    return np.concatenate(parts, axis=1)
