"""This rank's rows of a prepared split, in an order that no number of ranks changes.

Every epoch has one global order (row groups drawn at random, rows shuffled in a window
of them); step s takes the global rows [s * B, (s + 1) * B) of it and rank r the r-th
slice of those. So all ranks take the same number of steps, a position is two numbers,
and a run resumed at another world size goes on with exactly the rows that were left.

A window is decoded while the one before it is consumed; the two exchange their memory,
because new pages cost a third of the time. So two windows are held, whatever the split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s, ReadOnlyColumns
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.prepare.row_buffer import RowBuffer
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.runtime.prefetch import prefetch


@dataclass(frozen=True)
class StepRows:
    """One rank's rows of one step.

    Attributes:
        columns: (B,) arrays by name, not contiguous in memory.
        weights: (B,) float32, 0 for rows that only fill up.
        split: where a row's number leads back to its file.
        places: where the rows come from: row groups, and rows counted over these.
    """

    columns: ReadOnlyColumns
    weights: Float32s
    split: Split
    places: tuple[tuple[Sequence[int], Int64s], ...]

    @cached_property
    def numbers(self) -> Int64s:
        """(B,) int64, the row's number in the split; for messages, so made late."""
        parts = [self.split.numbers(groups, rows) for groups, rows in self.places]
        return np.concatenate(parts)

    @property
    def first_number(self) -> int:
        """That of the first row alone."""
        groups, rows = self.places[0]
        return int(self.split.numbers(groups, rows[:1])[0])


@dataclass(frozen=True)
class _Window:
    """Some of an epoch's global order.

    Attributes:
        first, end: its positions in the order, `end` not among them.
        order: row of `decoded` at each position; the last one fills up the positions
            behind the split's last row.
        groups: the row groups in `decoded`.
        decoded: the columns; written over when the window after next is read.
    """

    first: int
    end: int
    order: Int64s
    groups: Sequence[int]
    decoded: RowBuffer

    def rows(self, first: int, end: int, split: Split) -> StepRows:
        """The rows at the positions from `first` to before `end`."""
        at = self.order[first - self.first : end - self.first]
        weights = np.ones(end - first, dtype=np.float32)
        lacking = end - first - len(at)
        if lacking:
            at = np.append(at, np.repeat(self.order[-1:], lacking))
            weights[-lacking:] = 0
        return StepRows(self.decoded.take(at), weights, split, ((self.groups, at),))


@dataclass(frozen=True)
class Reader:
    """Steps of `batch_size` global rows.

    Args:
        batch_size: rows of one step over all ranks, a multiple of `world_size`.
        seed: shuffles and drops the incomplete last step (training). None: file order,
            the last step filled up with rows of weight 0 (evaluation, export).
        shuffle_window: rows shuffled together.
    """

    split: Split
    columns: tuple[str, ...]
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int | None = None
    shuffle_window: int = 1_000_000
    _spare: list[RowBuffer] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise ConfigError(
                f"batch size {self.batch_size} must be a multiple of the"
                f" {self.world_size} ranks"
            )
        if self.seed is not None and self.split.num_rows < self.batch_size:
            raise ConfigError(
                f"train.batch_size = {self.batch_size} exceeds the"
                f" {self.split.num_rows} training rows"
            )
        lacking = sorted(set(self.columns) - set(self.split.types))
        if lacking:
            path = self.split.groups[0][0]
            raise DataError(f"{path} has no columns {lacking}; prepare again")

    @property
    def steps(self) -> int:
        """Steps of one epoch, the same on every rank."""
        full, rest = divmod(self.split.num_rows, self.batch_size)
        return full + (1 if rest and self.seed is None else 0)

    @property
    def local_batch_size(self) -> int:
        """Rows of one step on one rank."""
        return self.batch_size // self.world_size

    def epoch(self, epoch: int = 0, first_step: int = 0) -> Iterator[StepRows]:
        """This rank's rows of the steps `first_step`, ... of one epoch.

        Raises:
            DataError: a file is damaged, or a column is missing or of another type.
        """
        parts: list[StepRows] = []
        start = first_step * self.batch_size
        buffers = self._buffers(epoch)
        for window in prefetch(self._windows(epoch, start, buffers), depth=1):
            at = self._next_owned_position(max(window.first, start))
            while at < window.end:
                end = (
                    at - at % self.local_batch_size + self.local_batch_size
                )  # of this step's slice
                parts.append(window.rows(at, min(end, window.end), self.split))
                if end <= window.end:
                    yield _join(parts)
                    parts = []
                at = self._next_owned_position(min(end, window.end))
        self._spare.extend(buffers)  # only now is nothing of it in use

    def _next_owned_position(self, position: int) -> int:
        """The first position of the order, from this one on, that this rank takes."""
        step = position // self.batch_size
        slice_start = step * self.batch_size + self.rank * self.local_batch_size
        if position >= slice_start + self.local_batch_size:
            return slice_start + self.batch_size
        return max(position, slice_start)

    def _windows(
        self, epoch: int, start: int, buffers: list[RowBuffer]
    ) -> Iterator[_Window]:
        """Windows in order; one that this rank takes nothing of is not decoded."""
        first, last = 0, self.steps * self.batch_size
        for number, groups in enumerate(self._grouped(epoch)):
            size = self._size(groups)
            is_last = first + size == self.split.num_rows
            end = last if is_last else min(first + size, last)
            if self._next_owned_position(max(first, start)) < end:
                self._decode(groups, buffers[0])
                order = self._order(epoch, number, size)
                yield _Window(first, end, order, groups, buffers[0])
                buffers.reverse()
            first += size

    def _buffers(self, epoch: int) -> list[RowBuffer]:
        """Memory for two windows: that of an epoch that is over, or new."""
        rows = max(self._size(groups) for groups in self._grouped(epoch))
        fit = [m for m in self._spare if m.rows >= rows]
        self._spare.clear()
        lacking = 2 - len(fit)
        new = (RowBuffer(self.split.types, self.columns, rows) for _ in range(lacking))
        return [*fit, *new][:2]

    def _order(self, epoch: int, window: int, size: int) -> Int64s:
        order = np.arange(size)
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch, window]).shuffle(order)
        return order

    def _size(self, groups: list[int]) -> int:
        return sum(self.split.groups[at][2] for at in groups)

    def _decode(self, groups: list[int], into: RowBuffer) -> None:
        first = 0
        for columns in self.split.read(groups, self.columns):
            into.put(first, columns)
            first += len(columns[self.columns[0]])

    def _grouped(self, epoch: int) -> Iterator[list[int]]:
        """The row groups of each window, in file order: a file is opened once."""
        order = np.arange(len(self.split.groups))
        limit = 1
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
            limit = self.shuffle_window
        window: list[int] = []
        rows = 0
        for at in order.tolist():
            window.append(at)
            rows += self.split.groups[at][2]
            if rows >= limit:
                yield sorted(window)
                window, rows = [], 0
        if window:
            yield sorted(window)


def _join(parts: list[StepRows]) -> StepRows:
    """Parts, one after the other; one alone is not copied."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: np.concatenate([part.columns[name] for part in parts])
        for name in parts[0].columns
    }
    weights = np.concatenate([part.weights for part in parts])
    places = tuple(place for part in parts for place in part.places)
    return StepRows(columns, weights, parts[0].split, places)
