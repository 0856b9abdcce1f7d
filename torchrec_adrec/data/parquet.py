"""This rank's rows of a prepared split, in an order that no number of ranks changes.

Every epoch has one global order (row groups drawn at random, rows shuffled in a window
of them); step s takes the global rows [s * B, (s + 1) * B) of it and rank r the r-th
slice of those. So all ranks take the same number of steps, a position is two numbers,
and a run resumed at another world size goes on with exactly the rows that were left.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from torchrec_adrec.errors import ConfigError, DataError

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Split:
    """The row groups of one split, and where a row of it stands.

    Attributes:
        groups: (file, row group, rows), in order.
        firsts: the global row that each group starts with.
    """

    groups: tuple[tuple[Path, int, int], ...]
    firsts: tuple[int, ...]
    num_rows: int

    @classmethod
    def open(cls, folder: Path) -> "Split":
        """Read the row counts of all files.

        Raises:
            DataError: no Parquet files, or a damaged one.
        """
        groups = []
        for path in sorted(folder.glob("part-*.parquet")):
            try:
                meta = pq.ParquetFile(path).metadata
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read: {error}") from None
            for i in range(meta.num_row_groups):
                groups.append((path, i, meta.row_group(i).num_rows))
        if not groups:
            raise DataError(f"{folder} has no part-*.parquet; run `adrec prepare`")
        ends = list(accumulate(rows for *_, rows in groups))
        return cls(tuple(groups), (0, *ends[:-1]), ends[-1])

    def locate(self, row: int) -> str:
        """File, row group and row within it, for messages."""
        at = bisect.bisect_right(self.firsts, row) - 1
        path, group, _ = self.groups[at]
        return f"{path}, row group {group}, row {row - self.firsts[at]}"

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> Columns:
        """Some row groups, one after the other, as arrays; nulls become NaN."""
        parts = []
        for at in groups:
            path, group, _ = self.groups[at]
            parts.append(pq.ParquetFile(path).read_row_group(group, columns=columns))
        return {
            name: np.concatenate([part[name].to_numpy() for part in parts])
            for name in columns
        }


@dataclass(frozen=True)
class Rows:
    """One rank's rows of one step.

    Attributes:
        columns: (B,) arrays by name.
        numbers: (B,) int64, the row's number in the split.
        weights: (B,) float32, 0 for rows that only fill up.
        split: where a row's number leads back to its file.
    """

    columns: Columns
    numbers: NDArray[np.int64]
    weights: NDArray[np.float32]
    split: Split


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

    @property
    def steps(self) -> int:
        """Steps of one epoch, the same on every rank."""
        full, rest = divmod(self.split.num_rows, self.batch_size)
        return full + (1 if rest and self.seed is None else 0)

    def epoch(self, epoch: int = 0, first_step: int = 0) -> Iterator[Rows]:
        """This rank's rows of the steps `first_step`, ... of one epoch."""
        share = self.batch_size // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        pending: list[tuple[Columns, NDArray[np.int64], NDArray[np.int64]]] = []
        waiting, emitted = 0, first_step
        skip = first_step * self.batch_size
        for window, order, numbers in self._windows(epoch, skip):
            pending.append((window, order, numbers))
            waiting += len(order)
            while waiting >= self.batch_size:
                taken, pending = _take(pending, self.batch_size)
                waiting -= self.batch_size
                emitted += 1
                yield self._rows(taken, mine)
        if emitted < self.steps:
            taken, _ = _take(pending, waiting)
            yield self._filled_up(taken, waiting, mine)

    def _windows(
        self, epoch: int, skip: int
    ) -> Iterator[tuple[Columns, NDArray[np.int64], NDArray[np.int64]]]:
        """Windows of rows with their order; the first `skip` rows are left out."""
        for number, groups in enumerate(self._grouped(epoch)):
            sizes = [self.split.groups[at][2] for at in groups]
            order = np.arange(sum(sizes))
            if self.seed is not None:
                np.random.default_rng([self.seed, epoch, number]).shuffle(order)
            order, skip = order[skip:], max(skip - len(order), 0)
            if not len(order):
                continue
            numbers = np.concatenate(
                [
                    self.split.firsts[at] + np.arange(self.split.groups[at][2])
                    for at in groups
                ]
            )
            yield self.split.read(groups, self.columns), order, numbers

    def _grouped(self, epoch: int) -> Iterator[list[int]]:
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
                yield window
                window, rows = [], 0
        if window:
            yield window

    def _rows(self, taken: list[Any], mine: slice) -> Rows:
        low, high = mine.start, mine.stop
        parts, numbers, seen = [], [], 0
        for window, order, number in taken:
            cut = order[max(low - seen, 0) : max(high - seen, 0)]
            seen += len(order)
            parts.append({name: column[cut] for name, column in window.items()})
            numbers.append(number[cut])
        columns = {n: np.concatenate([p[n] for p in parts]) for n in self.columns}
        weights = np.ones(high - low, dtype=np.float32)
        return Rows(columns, np.concatenate(numbers), weights, self.split)

    def _filled_up(self, taken: list[Any], rows: int, mine: slice) -> Rows:
        """The last evaluation step, filled up with its first row at weight 0."""
        window, order, numbers = taken[0]
        filler = np.full(self.batch_size - rows, order[0])
        full = self._rows([*taken, (window, filler, numbers)], mine)
        weights = (np.arange(mine.start, mine.stop) < rows).astype(np.float32)
        return Rows(full.columns, full.numbers, weights, self.split)


def _take(pending: list[Any], rows: int) -> tuple[list[Any], list[Any]]:
    """Split a list of windows after `rows` rows of their order."""
    taken: list[Any] = []
    for at, (window, order, numbers) in enumerate(pending):
        if rows <= len(order):
            taken.append((window, order[:rows], numbers))
            rest = order[rows:]
            left = [(window, rest, numbers)] if len(rest) else []
            return taken, left + pending[at + 1 :]
        taken.append((window, order, numbers))
        rows -= len(order)
    raise AssertionError("more rows asked for than are waiting")
