"""What a trainer reads: this rank's batches of every step, and which rows they are."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torchrec_adrec.batch import Batch
from torchrec_adrec.config import Config
from torchrec_adrec.data.bounds import Mended
from torchrec_adrec.data.collate import batch_columns, collate, memory_for
from torchrec_adrec.data.ledger import LEDGER, Ledger
from torchrec_adrec.data.negatives import UniformNegatives
from torchrec_adrec.data.parquet import Reader, Rows
from torchrec_adrec.data.prefetch import prefetch
from torchrec_adrec.data.row_groups import Split
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.schema import Schema


@dataclass
class Source:
    """The training rows of a prepared data set, step by step.

    Args:
        data: its folder.
        folder: where the ledger goes, if `train.ledger` asks for one.
        negatives: draws ads beside the rows' own; None: nothing.
    """

    data: Path
    schema: Schema
    config: Config
    process: Process
    folder: Path
    negatives: UniformNegatives | None = None
    mended: Mended = field(default_factory=Mended)
    _ahead: dict[int, tuple[Rows, Batch]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train, ranks = self.config.train, self.process
        self.reader = Reader(
            Split.open(self.data / "train"),
            batch_columns(self.schema),
            train.batch_size,
            ranks.rank,
            ranks.world_size,
            seed=self.config.seed,
            shuffle_window=train.shuffle_window,
        )
        self.steps = self.reader.steps * train.epochs
        self.ledger: Ledger | None = None
        if train.ledger:
            self.ledger = Ledger(self.folder / LEDGER, ranks.rank, ranks.world_size)

    @property
    def left_out(self) -> int:
        """Rows of an epoch that make no whole step."""
        return self.reader.split.num_rows - self.reader.steps * self.reader.batch_size

    def batches(self, first: int) -> Iterator[Batch]:
        """The steps after step `first`, read ahead in a thread."""
        for step, rows, batch in prefetch(self._read(first)):
            self._ahead[step] = rows, batch
            if self.ledger is not None:
                self.ledger.take(step, rows.numbers)
            yield batch

    def _read(self, first: int) -> Iterator[tuple[int, Rows, Batch]]:
        for epoch in range(self.config.train.epochs):
            before = epoch * self.reader.steps
            skip = max(first - before, 0)
            if skip < self.reader.steps:
                read = self.reader.epoch(epoch, skip)
                for step, rows in enumerate(read, before + skip + 1):
                    yield step, rows, self._collate(step, rows)

    def _collate(self, step: int, rows: Rows) -> Batch:
        memory = memory_for(self.process.device)
        extra = self.negatives.of_step(step) if self.negatives is not None else None
        bounds = self.config.data.bounds
        batch = collate(rows, self.schema, bounds, self.mended, extra, memory)
        if self.negatives is not None:
            batch.log_q.copy_(self.negatives.mixed(batch.log_q))
        return batch

    def ahead(self, step: int) -> Batch | None:
        """The batch of a step, if it has been read."""
        found = self._ahead.get(step)
        return None if found is None else found[1]

    def begin(self, step: int) -> Batch:
        """The batch of a step, on the host; those of older steps are forgotten."""
        for old in [s for s in self._ahead if s < step]:
            del self._ahead[old]
        return self._ahead[step][1]

    def where(self, step: int) -> str:
        """A step's rows on this rank: how many, and where the first one stands."""
        numbers = self._ahead[step][0].numbers
        first = self.reader.split.locate(int(numbers[0]))
        return f"{len(numbers)} rows, the first is {first}"
