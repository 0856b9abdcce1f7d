"""The training loop, the same for towers and ranker, on any number of ranks.

Nothing about a step depends on the steps before it but the weights: the rows, the
dropout masks and the position all follow from (seed, step). So a run that was killed
and resumed on as many ranks ends with the bits of one that was not.
"""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from torchrec_adrec.batch import Batch
from torchrec_adrec.config import Config
from torchrec_adrec.data.bounds import Mended
from torchrec_adrec.data.collate import batch_columns, collate
from torchrec_adrec.data.ledger import LEDGER, Ledger
from torchrec_adrec.data.parquet import Reader
from torchrec_adrec.data.prefetch import prefetch
from torchrec_adrec.data.row_groups import Split
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.interrupt import Interrupt
from torchrec_adrec.distributed.process import Process, restarts
from torchrec_adrec.distributed.watchdog import Watchdog
from torchrec_adrec.errors import DataError, StoppedError
from torchrec_adrec.evaluation.pictures import calibration_curve, loss_curve
from torchrec_adrec.evaluation.predict import Predictions, label_metrics, predict_split
from torchrec_adrec.files import vocabulary_hashes
from torchrec_adrec.progress import Progress
from torchrec_adrec.schema import Schema
from torchrec_adrec.sharded_task import CHECKPOINTS, build, warm_start_names

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Trains one task.

    Args:
        task: `retrieval` or `ranking`.
        data: a prepared data set.
        folder: where checkpoints, curves and metrics go; a run that finds checkpoints
            here goes on from the last one.
        warm_start: retrieval checkpoint whose tables a ranker starts with.
    """

    task: str
    config: Config
    process: Process
    data: Path
    folder: Path
    warm_start: checkpoint.Checkpoint | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    mended: Mended = field(default_factory=Mended)
    initialised: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schema = Schema.load(self.data / "schema.json")
        self.model, self.optimizer = build(
            self.task, self.schema, self.config, self.process
        )
        self.reader = Reader(
            Split.open(self.data / "train"),
            batch_columns(self.schema),
            self.config.train.batch_size,
            self.process.rank,
            self.process.world_size,
            seed=self.config.seed,
            shuffle_window=self.config.train.shuffle_window,
        )
        self.steps = self.reader.steps * self.config.train.epochs
        self.ledger: Ledger | None = None
        if self.config.train.ledger:
            rank, size = self.process.rank, self.process.world_size
            self.ledger = Ledger(self.folder / LEDGER, rank, size)
        self._ahead: dict[int, tuple[torch.Tensor, ...]] = {}  # read, not yet trained

    def fit(self) -> dict[str, Any]:
        """Train to the end and judge on the held-out splits; write `metrics.json`."""
        first = self._restore()
        left_out = (
            self.reader.split.num_rows - self.reader.steps * self.reader.batch_size
        )
        if self.process.is_first:
            log.info(
                "%s: steps %d to %d of %d global rows, %d rows an epoch left out (the"
                " incomplete last step), seed %d",
                self.task,
                first,
                self.steps,
                self.reader.batch_size,
                left_out,
                self.config.seed,
            )
        rate, last_loss = self._train(first)
        metrics = {
            "task": self.task,
            "seed": self.config.seed,
            "world_size": self.process.world_size,
            "initialised": self.initialised,
            "train": {
                "steps": self.steps,
                "rows_left_out_an_epoch": left_out,
                "last_step_loss": last_loss,
                "samples_per_second": rate,
                "resumed_at_step": first,
                "restarts": restarts(),
            },
            **self._held_out(),
        }
        if self.process.is_first:
            (self.folder / "metrics.json").write_text(
                json.dumps(metrics, indent=1) + "\n"
            )
            loss_curve(
                self.curve, f"{self.task}: training loss", self.folder / "loss.png"
            )
        return metrics

    def _restore(self) -> int:
        """Load the last checkpoint, or the tables of a warm start, or nothing."""
        found = checkpoint.latest(self.folder / CHECKPOINTS)
        if found is not None:
            checkpoint.load(found, self.model, self.schema, self.optimizer)
            self.curve = [(step, loss) for step, loss in found.state["curve"]]
            self._last_loss = float(found.state["last_step_loss"])
            self.initialised = found.state.get("initialised", [])
            if self.ledger is not None:
                self.ledger.go_on(found.step, found.state.get("ledger", []))
            log.info("resumed from %s", found.path)
            return found.step
        towers = self.config.towers
        if self.task == "retrieval" and towers.start:
            origin_of = checkpoint.open_checkpoint(Path(towers.start))
            self.initialised = checkpoint.load_weights(
                origin_of,
                self.model,
                vocabulary_hashes(self.data),
                towers.allow_new_tables,
            )
            for name in self.initialised:
                log.warning("%s: initialised, not from %s", name, towers.start)
        if self.warm_start is not None:
            origin = warm_start_names(self.model)
            checkpoint.load_tables(self.warm_start, self.model, self.schema, origin)
            log.info(
                "%d tables warm-started from %s", len(origin), self.warm_start.path
            )
        return 0

    def _train(self, first: int) -> tuple[float, float]:
        """Run the steps that are left; samples/s and the last step's global loss."""
        pipeline = TrainPipelineSparseDist(
            self.model, self.optimizer, self.process.device
        )
        rows, size = prefetch(self._batches(first)), self.reader.batch_size
        settings, left = self.config.train, (self.steps - first) * size
        self.model.train()
        window: list[torch.Tensor] = []
        with (
            Interrupt() as interrupt,
            Watchdog(self.process, settings.hang_seconds) as watchdog,
            self._board() as board,
            Progress(f"train {self.task}", left, "samples") as progress,
        ):
            for step in range(first + 1, self.steps + 1):
                self._seed(step)
                watchdog.beat(step, self._ahead.pop(step, ()))
                loss, note = pipeline.progress(rows).loss, ""
                window.append(loss)
                last = step == self.steps
                if last or step % settings.log_every == 0:
                    note = self._log(step, window, progress.rate, board)
                    window = []
                stop = interrupt.agreed(self.process.device)
                if last or stop or step % settings.checkpoint_every == 0:
                    with watchdog.paused():
                        self._save(step, self._global(loss))
                if stop:
                    raise StoppedError(stop, step)
                progress.advance(size, note)
        pipeline.detach()
        self.mended.report()
        return progress.rate, self._last_loss

    def _batches(self, first: int) -> Iterator[Batch]:
        for epoch in range(self.config.train.epochs):
            skip = max(first - epoch * self.reader.steps, 0)
            if skip < self.reader.steps:
                start = epoch * self.reader.steps + skip + 1
                for step, rows in enumerate(self.reader.epoch(epoch, skip), start):
                    batch = collate(
                        rows, self.schema, self.config.data.bounds, self.mended
                    )
                    self._ahead[step] = (batch.ad_ids, batch.labels)
                    if self.ledger is not None:
                        self.ledger.take(step, rows.numbers)
                    yield batch

    def _seed(self, step: int) -> None:
        """Dropout of a step depends on seed, step and rank alone."""
        torch.manual_seed((self.config.seed << 40) + (step << 12) + self.process.rank)

    def _global(self, loss: torch.Tensor) -> float:
        """The mean over ranks, which is the global loss; the same on every rank."""
        total = loss.detach().clone()
        dist.all_reduce(total)
        return total.item() / self.process.world_size

    def _log(
        self,
        step: int,
        window: list[torch.Tensor],
        rate: float,
        board: SummaryWriter | None,
    ) -> str:
        mean = self._global(torch.stack(window).mean())
        self._check_finite(mean, step - len(window) + 1, step)
        self.curve.append((step, mean))
        if board is not None:
            board.add_scalar(f"{self.task}/loss", mean, step)
            board.add_scalar(f"{self.task}/samples_per_second", rate, step)
        return f"loss {mean:.4f}"

    def _check_finite(self, loss: float, first: int, last: int) -> None:
        if not math.isfinite(loss):
            raise DataError(
                f"{self.task}: the loss became {loss} between steps {first} and {last};"
                " lower the learning rates"
            )

    def _save(self, step: int, loss: float) -> None:
        self._check_finite(loss, step, step)  # never resume from a broken state
        self._last_loss = loss
        segments = self.ledger.keep(step) if self.ledger is not None else []
        checkpoint.save(
            self.folder / CHECKPOINTS,
            self.process,
            self.model,
            self.optimizer,
            self.schema,
            {
                "task": self.task,
                "step": step,
                "seed": self.config.seed,
                "last_step_loss": loss,
                "curve": self.curve,
                "ledger": segments,
                "initialised": self.initialised,
                "steps_an_epoch": self.reader.steps,
                "vocabulary": vocabulary_hashes(self.data),
                "config": self.config.model_dump(mode="json"),
            },
            self.config.train.keep_checkpoints,
        )

    @contextmanager
    def _board(self) -> Iterator[SummaryWriter | None]:
        """TensorBoard of the first rank; steps that are repeated are purged."""
        if not self.process.is_first:
            yield None
            return
        purge = self.curve[-1][0] + 1 if self.curve else 0
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge) as board:
            yield board

    def _held_out(self) -> dict[str, Any]:
        """Figures on the splits that training never read, and their calibration."""
        size, figures = self.config.train.eval_batch_size, {}
        bounds = self.config.data.bounds
        for name in ("valid", "test"):
            if not any((self.data / name).glob("*.parquet")):
                continue
            found = predict_split(
                self.model, self.data / name, self.schema, self.process, size, bounds
            )
            figures[name] = label_metrics(self.schema, found)
            if self.process.is_first and name == "test":
                self._draw_calibration(found)
        return figures

    def _draw_calibration(self, found: Predictions) -> None:
        label, (probability, observed) = next(iter(found.items()))
        title = f"{self.task}: {label} on the test split"
        calibration_curve(probability, observed, title, self.folder / "calibration.png")
