"""The batches of a training run, step by step, for a thread or process to read."""

from collections.abc import Iterator
from dataclasses import dataclass

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.batch import Batch
from torchrec_adrec.config.data import Bounds
from torchrec_adrec.data.loader.batch_memory import Memory
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import collate, most_bytes
from torchrec_adrec.data.loader.extra_ads import NO_EXTRA, ExtraAds
from torchrec_adrec.data.loader.parquet import Reader, StepRows
from torchrec_adrec.schema import USER_KEY, Schema


@dataclass(frozen=True)
class BatchOrigin:
    """The rows that a batch was made from.

    Attributes:
        step: counted from 1.
        count: B.
        first: the number of the first row in its split.
        numbers: (B,) int64, the numbers of all rows; None unless asked for.
    """

    step: int
    count: int
    first: int
    numbers: Int64s | None


@dataclass(frozen=True)
class Feed:
    """All batches of one rank.

    A batch depends on the seed and on its step alone, so a run that was resumed sees
    the same batches as one that was never interrupted.

    Attributes:
        reader: of the training rows.
        schema: of their columns.
        epochs: how often the rows are read.
        bounds: what happens to values out of range, see `data.loader.bounds`.
        negatives: draws ads in addition to those of the rows.
        numbered: whether the row numbers are kept, for the ledger.
    """

    reader: Reader
    schema: Schema
    epochs: int
    bounds: Bounds
    negatives: ExtraAds = NO_EXTRA
    numbered: bool = False

    @property
    def steps(self) -> int:
        """The number of steps of all epochs."""
        return self.reader.steps * self.epochs

    @property
    def most_bytes(self) -> int:
        """The size of the largest batch that can occur, in bytes."""
        rows = self.reader.local_batch_size
        keys = rows if USER_KEY in self.reader.columns else 0
        return most_bytes(self.schema, rows, rows + self.negatives.count(rows), keys)

    def read(
        self, first: int, memory: Memory, repaired: RepairCounts
    ) -> Iterator[tuple[BatchOrigin, Batch]]:
        """The batches of the steps after step `first`.

        Args:
            first: the steps that were done before, 0 for a new run.
            memory: allocates the buffer of a batch.
            repaired: counts the values out of range that were repaired.

        Raises:
            DataError: rows that cannot be read or used, named with file and row.
        """
        for epoch in range(self.epochs):
            steps_before = epoch * self.reader.steps
            skipped = max(first - steps_before, 0)
            # A finished epoch is not opened at all: a run resumes without reading it.
            if skipped < self.reader.steps:
                epoch_rows = self.reader.epoch(epoch, skipped)
                for step, rows in enumerate(epoch_rows, steps_before + skipped + 1):
                    batch = self._collate(step, rows, memory, repaired)
                    yield self._origin(step, rows), batch

    def _origin(self, step: int, rows: StepRows) -> BatchOrigin:
        # To compute all numbers takes time that a run without a ledger saves.
        numbers = rows.numbers if self.numbered else None
        return BatchOrigin(step, len(rows.weights), rows.first_number, numbers)

    def _collate(
        self, step: int, rows: StepRows, memory: Memory, repaired: RepairCounts
    ) -> Batch:
        extra = self.negatives.of_step(step, rows)
        batch = collate(rows, self.schema, self.bounds, repaired, extra, memory)
        self.negatives.mix(batch.log_q, len(rows.weights))
        return batch
