"""This rank's rows of a prepared split, in an order that no number of ranks changes.

Every epoch has one global order (row groups drawn at random, rows shuffled in a window
of them). Step s takes the global rows [s * B, (s + 1) * B) of it, and rank r takes the
r-th slice of those. So all ranks take the same number of steps, a position is two
numbers (epoch and step), and a run that is resumed at another world size goes on with
exactly the rows that were left.

A window is decoded while the one before it is consumed (`windows.py`), by this rank or
by all ranks of the machine together (`node_windows.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s, ReadOnlyColumns
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.loader.windows import OwnWindows, Windows
from torchrec_adrec.data.prepare.row_buffer import RowBuffer
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.runtime.prefetch import prefetch


@dataclass(frozen=True)
class StepRows:
    """One rank's rows of one step.

    Attributes:
        columns: (B,) arrays by name, not contiguous in memory.
        weights: (B,) float32 of the split, 0 for rows that only complete the step.
        split: finds a row's file by its number.
        group_rows: pairs of row groups and of rows counted over these groups; all
            pairs together are the B rows.
    """

    columns: ReadOnlyColumns
    weights: Float32s
    split: Split
    group_rows: tuple[tuple[Sequence[int], Int64s], ...]

    @cached_property
    def numbers(self) -> Int64s:
        """(B,) int64, the rows' numbers in the split.

        Messages and the ledger need them, most steps do not: so they are made late.
        """
        parts = [self.split.numbers(groups, rows) for groups, rows in self.group_rows]
        return np.concatenate(parts)

    @property
    def first_number(self) -> int:
        """The number of the first row alone."""
        groups, rows = self.group_rows[0]
        return int(self.split.numbers(groups, rows[:1])[0])


@dataclass(frozen=True)
class _Window:
    """A stretch of an epoch's global order, decoded.

    Attributes:
        first, end: the positions in the global order, `end` not among them.
        order: the row of `decoded` for each position from `first` on. At the end of an
            evaluation there are fewer rows than positions.
        groups: the row groups in `decoded`.
        decoded: the columns; overwritten when the window after next is read.
    """

    first: int
    end: int
    order: Int64s
    groups: Sequence[int]
    decoded: RowBuffer

    def rows(self, first: int, end: int, split: Split) -> StepRows:
        """The rows at the positions from `first` to before `end`."""
        rows = self.order[first - self.first : end - self.first]
        missing = end - first - len(rows)
        if missing:
            # Every rank needs as many rows as the others: the split's last row is
            # repeated, with weight 0 so that it counts once.
            rows = np.append(rows, np.repeat(self.order[-1:], missing))
        weights = split.weights_of(self.groups, rows)
        weights[len(rows) - missing :] = 0
        columns = self.decoded.take(rows)
        return StepRows(columns, weights, split, ((self.groups, rows),))


@dataclass(frozen=True)
class Reader:
    """Reads one rank's rows of a split, in steps of `batch_size` rows over all ranks.

    >>> import tempfile, polars
    >>> from itertools import islice
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> rows = polars.DataFrame({"age": [30, 31, 32, 33, 34]})
    >>> rows.write_parquet(folder / "part-00000.parquet")
    >>> reader = Reader(Split.open(folder), ("age",), batch_size=2)
    >>> for step in islice(reader.epoch(), 2):
    ...     print(step.columns["age"].tolist(), step.numbers.tolist())
    [30, 31] [0, 1]
    [32, 33] [2, 3]

    Args:
        split: the row groups.
        columns: the names of those to read.
        batch_size: rows of one step over all ranks, a multiple of `world_size`.
        rank: of this process.
        world_size: number of ranks.
        seed: shuffles and drops the incomplete last step (training). None: file order,
            the last step completed by rows of weight 0 (evaluation, export).
        shuffle_window: rows shuffled together.

    Raises:
        ConfigError: a batch size that does not fit the ranks or the rows.
        DataError: a column that the files do not have.
    """

    split: Split
    columns: tuple[str, ...]
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int | None = None
    shuffle_window: int = 1_000_000
    _spare: list[Windows] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise ConfigError(
                f"batch size {self.batch_size} must be a multiple of the"
                f" {self.world_size} ranks"
            )
        # Training drops an incomplete step, so it would have no step at all.
        if self.seed is not None and self.split.num_rows < self.batch_size:
            raise ConfigError(
                f"train.batch_size = {self.batch_size} exceeds the"
                f" {self.split.num_rows} training rows"
            )
        missing = sorted(set(self.columns) - set(self.split.types))
        if missing:
            path = self.split.groups[0][0]
            raise DataError(f"{path} has no columns {missing}; prepare again")

    @property
    def steps(self) -> int:
        """The number of steps of one epoch, the same on every rank."""
        full, rest = divmod(self.split.num_rows, self.batch_size)
        return full + (1 if rest and self.seed is None else 0)

    @property
    def local_batch_size(self) -> int:
        """The rows of one step on one rank."""
        return self.batch_size // self.world_size

    def epoch(self, epoch: int = 0, first_step: int = 0) -> Iterator[StepRows]:
        """This rank's rows of the steps `first_step`, ... of one epoch.

        Raises:
            DataError: a file is damaged, or a column is missing or of another type.
        """
        memory = self._memory(epoch)
        # `depth=1`: the thread decodes the next window into the other buffer. One more
        # window ahead would overwrite the one that is read here.
        start = first_step * self.batch_size
        windows = prefetch(self._windows(epoch, start, memory), depth=1)
        try:
            yield from self._steps(windows, start, memory)
        except BaseException:
            # First of all: the thread may wait for a neighbour, who waits for us.
            memory.leave()
            windows.close()
            raise
        # Only now is nothing in use: an epoch that began meanwhile has other memory.
        self._spare.append(memory)

    def decode_to(self, windows: Windows) -> None:
        """Let the next epoch be decoded to these, and those after it."""
        self._spare.append(windows)

    def _steps(
        self, windows: Iterator[_Window], start: int, memory: Windows
    ) -> Iterator[StepRows]:
        """This rank's rows of every step, cut out of the windows."""
        parts: list[StepRows] = []  # of a step whose rows lie in several windows
        for window in windows:
            position = self._next_owned_position(max(window.first, start))
            while position < window.end:
                # A step's slice may begin in one window and end in the next one.
                slice_start = position - position % self.local_batch_size
                slice_end = slice_start + self.local_batch_size
                part_end = min(slice_end, window.end)
                parts.append(window.rows(position, part_end, self.split))
                if slice_end <= window.end:
                    yield _join(parts)
                    parts = []
                position = self._next_owned_position(part_end)
            memory.release()

    def _next_owned_position(self, position: int) -> int:
        """The first position of the global order, from this one on, of this rank."""
        step = position // self.batch_size
        slice_start = step * self.batch_size + self.rank * self.local_batch_size
        if position >= slice_start + self.local_batch_size:
            return slice_start + self.batch_size
        return max(position, slice_start)

    def _windows(self, epoch: int, start: int, memory: Windows) -> Iterator[_Window]:
        """The windows of an epoch that hold rows of this rank, in order."""
        first, last = 0, self.steps * self.batch_size
        for number, groups in enumerate(self._grouped(epoch)):
            size = self._size(groups)
            # `last` lies before the split's end in training, which drops an incomplete
            # step, and behind it in evaluation, which completes that step.
            is_last = first + size == self.split.num_rows
            end = last if is_last else min(first + size, last)
            # A window before `start` is not decoded; one without a row of this rank
            # only if others need it.
            needed = max(first, start)
            if not memory.is_shared:
                needed = self._next_owned_position(needed)
            if needed < end:
                decoded = memory.decode(groups)
                order = self._order(epoch, number, size)
                yield _Window(first, end, order, groups, decoded)
            first += size

    def _memory(self, epoch: int) -> Windows:
        """Memory for two windows: that of an epoch that has ended, or new."""
        rows = max(self._size(groups) for groups in self._grouped(epoch))
        while self._spare:
            if (spare := self._spare.pop()).rows >= rows:
                return spare
        return OwnWindows(self.split, self.columns, rows)

    @property
    def most_window_rows(self) -> int:
        """The rows of the largest window that an epoch of any number can have."""
        largest = max(rows for *_, rows in self.split.groups)
        return min(self.shuffle_window - 1 + largest, self.split.num_rows)

    def _order(self, epoch: int, window: int, size: int) -> Int64s:
        """The rows of a window in the order in which steps take them.

        Seeded by (seed, epoch, window): a run that starts at a later window need not
        draw the orders of the windows before it.
        """
        order = np.arange(size)
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch, window]).shuffle(order)
        return order

    def _size(self, groups: list[int]) -> int:
        return sum(self.split.groups[group][2] for group in groups)

    def _grouped(self, epoch: int) -> Iterator[list[int]]:
        """The row groups of each window, drawn at random if there is a seed."""
        order = np.arange(len(self.split.groups))
        limit = 1  # without shuffling every row group is a window
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
            limit = self.shuffle_window
        window: list[int] = []
        rows = 0
        for group in order.tolist():
            window.append(group)
            rows += self.split.groups[group][2]
            if rows >= limit:
                yield sorted(window)  # in file order, so that a file is opened once
                window, rows = [], 0
        if window:
            yield sorted(window)


def _join(parts: list[StepRows]) -> StepRows:
    """The parts, one after the other; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: np.concatenate([part.columns[name] for part in parts])
        for name in parts[0].columns
    }
    weights = np.concatenate([part.weights for part in parts])
    group_rows = tuple(pair for part in parts for pair in part.group_rows)
    return StepRows(columns, weights, parts[0].split, group_rows)
