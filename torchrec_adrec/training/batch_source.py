"""What a trainer reads: this rank's batches of every step, and which rows they are."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import Config
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import batch_columns, memory_for
from torchrec_adrec.data.loader.feed import BatchOrigin, Feed
from torchrec_adrec.data.loader.ledger import LEDGER, Ledger
from torchrec_adrec.data.loader.negatives import UniformNegatives
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.reader_process import read_in_process
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.runtime.prefetch import prefetch
from torchrec_adrec.schema import Schema


@dataclass
class BatchSource:
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
    repaired: RepairCounts = field(default_factory=RepairCounts)
    _ahead: dict[int, tuple[BatchOrigin, Batch]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train, process = self.config.train, self.process
        self.reader = Reader(
            Split.open(self.data / "train"),
            batch_columns(self.schema),
            train.batch_size,
            process.rank,
            process.world_size,
            seed=self.config.seed,
            shuffle_window=train.shuffle_window,
        )
        self.feed = Feed(
            self.reader,
            self.schema,
            train.epochs,
            self.config.data.bounds,
            self.negatives,
            numbered=train.ledger,
        )
        self.steps = self.feed.steps
        self.ledger: Ledger | None = None
        if train.ledger:
            self.ledger = Ledger(self.folder / LEDGER, process.rank, process.world_size)

    @property
    def dropped_rows(self) -> int:
        """Rows of an epoch that make no whole step."""
        return self.reader.split.num_rows - self.reader.steps * self.reader.batch_size

    def batches(self, first: int) -> Iterator[Batch]:
        """The steps after step `first`, read ahead."""
        device = self.process.device
        wanted = self.config.train.reader
        apart = wanted == "process" or (wanted == "auto" and device.type == "cuda")
        read = read_in_process if apart else Feed.read
        batches = read(self.feed, first, memory_for(device), self.repaired)
        for taken, batch in prefetch(batches):
            self._ahead[taken.step] = taken, batch
            if self.ledger is not None and taken.numbers is not None:
                self.ledger.take(taken.step, taken.numbers)
            yield batch

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
        taken, _ = self._ahead[step]
        return (
            f"{taken.count} rows, the first is {self.reader.split.locate(taken.first)}"
        )
