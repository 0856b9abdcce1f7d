"""The batches of a training run, step by step, for whoever reads them ahead."""

from collections.abc import Iterator
from dataclasses import dataclass

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.data import Bounds
from torchrec_adrec.data.loader.bounds import Mended
from torchrec_adrec.data.loader.collate import Memory, collate, most_bytes
from torchrec_adrec.data.loader.negatives import UniformNegatives
from torchrec_adrec.data.loader.parquet import Reader, Rows
from torchrec_adrec.data.loader.row_groups import Integers
from torchrec_adrec.schema import Schema


@dataclass(frozen=True)
class Taken:
    """Which rows a batch holds.

    Attributes:
        step: from 1.
        count: B.
        first: the number of the first row in its split.
        numbers: (B,) int64, of all rows; None unless asked for.
    """

    step: int
    count: int
    first: int
    numbers: Integers | None


@dataclass(frozen=True)
class Feed:
    """All batches of one rank; what follows from (seed, step) alone.

    Attributes:
        negatives: draws ads beside the rows' own; None: nothing.
        numbered: whether the numbers of all rows are wanted.
    """

    reader: Reader
    schema: Schema
    epochs: int
    bounds: Bounds
    negatives: UniformNegatives | None = None
    numbered: bool = False

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return self.reader.steps * self.epochs

    @property
    def most_bytes(self) -> int:
        """Of a batch, whatever its rows hold."""
        drawn = self.negatives.share if self.negatives is not None else 0
        return most_bytes(self.schema, self.reader.share, self.reader.share + drawn)

    def read(
        self, first: int, memory: Memory, mended: Mended
    ) -> Iterator[tuple[Taken, Batch]]:
        """The batches of the steps after step `first`.

        Args:
            memory: where a batch goes.
            mended: counts the values out of range that were mended.

        Raises:
            DataError: rows that cannot be read or used, named with file and row.
        """
        for epoch in range(self.epochs):
            before = epoch * self.reader.steps
            skip = max(first - before, 0)
            if skip < self.reader.steps:
                read = self.reader.epoch(epoch, skip)
                for step, rows in enumerate(read, before + skip + 1):
                    batch = self._collate(step, rows, memory, mended)
                    yield self._taken(step, rows), batch

    def _taken(self, step: int, rows: Rows) -> Taken:
        numbers = rows.numbers if self.numbered else None
        return Taken(step, len(rows.weights), rows.first_number, numbers)

    def _collate(self, step: int, rows: Rows, memory: Memory, mended: Mended) -> Batch:
        extra = self.negatives.of_step(step) if self.negatives is not None else None
        batch = collate(rows, self.schema, self.bounds, mended, extra, memory)
        if self.negatives is not None:
            batch.log_q.copy_(self.negatives.mixed(batch.log_q))
        return batch
