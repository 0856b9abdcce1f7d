"""Gives a trainer this rank's batches of every step, and says which rows they hold."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.data import Bounds
from torchrec_adrec.config.run import Config
from torchrec_adrec.config.train import RankingConfig, TrainConfig
from torchrec_adrec.data.loader.batch_memory import memory_for
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import batch_columns
from torchrec_adrec.data.loader.extra_ads import NO_EXTRA, ExtraAds
from torchrec_adrec.data.loader.feed import BatchOrigin, Feed
from torchrec_adrec.data.loader.ledger import LEDGER, Ledger
from torchrec_adrec.data.loader.mined import MinedAds
from torchrec_adrec.data.loader.negatives import UniformNegatives
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.reader_process import read_in_process
from torchrec_adrec.data.loader.sampled_split import RetrievedRows, training_split
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.runtime.prefetch import prefetch
from torchrec_adrec.schema import USER_KEY, Schema
from torchrec_adrec.training.neighbours import share_windows


def negative_rate(task: str, config: RankingConfig) -> float:
    """The share of the rows without a click that a task reads; towers read all."""
    return config.negative_rate if task == "ranking" else 1


@dataclass
class BatchSource:
    """The training rows of a prepared data set, step by step. Collective.

    Args:
        data: its folder.
        schema: of the data.
        train: how many rows a step has, how often and in which order they are read.
        seed: of the order.
        process: this rank; it reads its share of every step.
        folder: where the ledger goes, if `train.ledger` asks for one.
        bounds: what happens to values out of range.
        negatives: draws ads in addition to those of the rows.
        negative_rate: the share of the rows without a click that is read.
        splits: of the prepared data, that are read as one.
        retrieved: rows beside them; None: no others.
        names_users: whether the batches tell who the users of the rows are.

    Attributes:
        repaired: counts the values out of range that were repaired.
    """

    data: Path
    schema: Schema
    train: TrainConfig
    seed: int
    process: Process
    folder: Path
    bounds: Bounds = "raise"
    negatives: ExtraAds = NO_EXTRA
    negative_rate: float = 1
    splits: Sequence[str] = ("train",)
    retrieved: RetrievedRows | None = None
    names_users: bool = False
    repaired: RepairCounts = field(default_factory=RepairCounts)
    # Batches that were read and whose step nobody has looked at yet, by step.
    _ahead: dict[int, tuple[BatchOrigin, Batch]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train, process = self.train, self.process
        rows = self.negative_rate, self.seed, self.splits, self.retrieved
        self.reader = Reader(
            training_split(self.data, self.schema, *rows),
            (*batch_columns(self.schema), *([USER_KEY] if self.names_users else [])),
            train.batch_size,
            process.rank,
            process.world_size,
            seed=self.seed,
            shuffle_window=train.shuffle_window,
        )
        self._windows = share_windows(self.reader, process)
        self.feed = Feed(
            self.reader,
            self.schema,
            train.epochs,
            self.bounds,
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

    @property
    def retrieved_rows(self) -> int:
        """Rows of an epoch that no log holds."""
        if self.retrieved is None:
            return 0
        groups, folder = self.reader.split.groups, self.retrieved.folder
        return sum(rows for path, _, rows in groups if path.parent == folder)

    @property
    def description(self) -> str:
        """What a step reads, in words."""
        drawn = f" + {self.retrieved_rows} retrieved" if self.retrieved else ""
        return (
            f"{self.train.batch_size} global rows ({' + '.join(self.splits)}{drawn}),"
            f" {self.dropped_rows} rows an epoch left out (the incomplete last step)"
        )

    def batches(self, first: int) -> Generator[Batch]:
        """Yield the batches of the steps after step `first`, read ahead."""
        device, reader = self.process.device, self.train.reader
        # A thread shares the interpreter with the launching of a GPU's kernels.
        in_process = reader == "process" or (reader == "auto" and device.type == "cuda")
        read = read_in_process if in_process else Feed.read
        batches = read(self.feed, first, memory_for(device), self.repaired)
        batches_ahead = prefetch(batches)
        try:
            for rows, batch in batches_ahead:
                self._ahead[rows.step] = rows, batch
                if self.ledger is not None and rows.numbers is not None:
                    self.ledger.take(rows.step, rows.numbers)
                yield batch
        except BaseException:
            # First of all: whoever reads may wait for a neighbour, who waits for us.
            if self._windows is not None:
                self._windows.leave()
            batches_ahead.close()
            raise

    def ahead(self, step: int) -> Batch | None:
        """Return the batch of a step, if it has been read."""
        pair = self._ahead.get(step)
        return None if pair is None else pair[1]

    def begin(self, step: int) -> Batch:
        """Return the batch of a step, on the host, and forget those of older steps."""
        for older in [s for s in self._ahead if s < step]:
            del self._ahead[older]
        return self._ahead[step][1]

    def where(self, step: int) -> str:
        """Say which rows of a step this rank has: how many, and where the first is."""
        rows, _ = self._ahead[step]
        return f"{rows.count} rows, the first is {self.reader.split.locate(rows.first)}"


def negatives_of(
    task: str, config: Config, data: Path, folder: Path, process: Process
) -> ExtraAds:
    """Make what draws the further negatives that towers are trained with.

    Args:
        task: a ranker has none.
        config: of the run.
        data: a prepared data set.
        folder: of the stage, with the lists of mined negatives.
        process: this rank.
    """
    settings, schema = config.retrieval, Schema.load(data / "schema.json")
    uniform: UniformNegatives | None = None
    mined: MinedAds | None = None
    if task == "retrieval" and settings.uniform_negatives:
        uniform = UniformNegatives(
            data,
            schema,
            settings.uniform_negatives,
            config.train.batch_size,
            config.seed,
            process.rank,
            process.world_size,
            settings.in_batch_negatives,
        )
    if task == "retrieval" and settings.mined.per_click:
        count = settings.mined.per_click
        mined = MinedAds(folder, data, schema, count, config.seed)
    return ExtraAds(uniform, mined)
