"""The batches of a training run, step by step, for whoever reads them ahead."""

from collections.abc import Iterator
from dataclasses import dataclass

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.batch import Batch
from torchrec_adrec.config.data import Bounds
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import Memory, collate, most_bytes
from torchrec_adrec.data.loader.negatives import UniformNegatives
from torchrec_adrec.data.loader.parquet import Reader, StepRows
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
    numbers: Int64s | None


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
        return most_bytes(
            self.schema,
            self.reader.local_batch_size,
            self.reader.local_batch_size + drawn,
        )

    def read(
        self, first: int, memory: Memory, repaired: RepairCounts
    ) -> Iterator[tuple[Taken, Batch]]:
        """The batches of the steps after step `first`.

        Args:
            memory: where a batch goes.
            repaired: counts the values out of range that were repaired.

        Raises:
            DataError: rows that cannot be read or used, named with file and row.
        """
        for epoch in range(self.epochs):
            before = epoch * self.reader.steps
            skip = max(first - before, 0)
            if skip < self.reader.steps:
                read = self.reader.epoch(epoch, skip)
                for step, rows in enumerate(read, before + skip + 1):
                    batch = self._collate(step, rows, memory, repaired)
                    yield self._taken(step, rows), batch

    def _taken(self, step: int, rows: StepRows) -> Taken:
        numbers = rows.numbers if self.numbered else None
        return Taken(step, len(rows.weights), rows.first_number, numbers)

    def _collate(
        self, step: int, rows: StepRows, memory: Memory, repaired: RepairCounts
    ) -> Batch:
        extra = self.negatives.of_step(step) if self.negatives is not None else None
        batch = collate(rows, self.schema, self.bounds, repaired, extra, memory)
        if self.negatives is not None:
            batch.log_q.copy_(self.negatives.mixed(batch.log_q))
        return batch
