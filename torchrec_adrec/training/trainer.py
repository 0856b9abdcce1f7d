"""The training loop, the same for towers and ranker, on any number of ranks.

Nothing about a step depends on the steps before it but the weights: the rows, the
dropout masks, the learning rates and the position all follow from (seed, step). So a
run that was killed and resumed on as many ranks ends with the bits of one that was not.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from torchrec_adrec.config.run import Config
from torchrec_adrec.data.loader.negatives import UniformNegatives
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.interrupt import Interrupt
from torchrec_adrec.distributed.process import Process, restarts_of
from torchrec_adrec.distributed.watchdog import Watchdog
from torchrec_adrec.errors import ConfigError, StoppedError
from torchrec_adrec.evaluation.pictures import loss_curve
from torchrec_adrec.runtime.files import Origin, vocabulary_hashes
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import (
    CHECKPOINTS,
    METRICS,
    build,
    check_origin,
    warm_start_names,
)
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.evaluator import Evaluator
from torchrec_adrec.training.precision import MatmulPrecision, choose_precision
from torchrec_adrec.training.step_runner import Step, StepRunner
from torchrec_adrec.training.stopping import EarlyStopping
from torchrec_adrec.training.tensorboard import TensorBoardLogger, tensorboard_logger

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
    initialised: list[str] = field(default_factory=list)
    precision: MatmulPrecision | None = None

    def __post_init__(self) -> None:
        self.schema = Schema.load(self.data / "schema.json")
        self.model, self.optimizer = build(
            self.task, self.schema, self.config, self.process
        )
        self.source = BatchSource(
            self.data,
            self.schema,
            self.config,
            self.process,
            self.folder,
            self._negatives(),
        )
        self.stopping = EarlyStopping(self.config.train.patience)
        self.evaluator = Evaluator(
            self.task, self.data, self.folder, self.schema, self.config, self.process
        )
        if self.config.train.evaluate_every and not self.evaluator.has("valid"):
            raise ConfigError(
                f"train.evaluate_every is set, but {self.data / 'valid'} has no rows;"
                " prepare with data.split.valid above 0"
            )
        self._last_loss = float("nan")

    def _negatives(self) -> UniformNegatives | None:
        count = self.config.retrieval.uniform_negatives
        if self.task != "retrieval" or not count:
            return None
        return UniformNegatives(
            self.data,
            self.schema,
            count,
            self.config.train.batch_size,
            self.config.seed,
            self.process.rank,
            self.process.world_size,
        )

    def fit(self) -> dict[str, Any]:
        """Train to the end and judge on the held-out splits; write `metrics.json`."""
        first = self._restore()
        restarts = restarts_of(self.folder) if self.process.is_first else 0
        if self.process.is_first:
            log.info(
                "%s: steps %d to %d of %d global rows, %d rows an epoch left out (the"
                " incomplete last step), seed %d",
                self.task,
                first,
                self.source.steps,
                self.config.train.batch_size,
                self.source.dropped_rows,
                self.config.seed,
            )
        rate, step = self._train(first)
        chosen = self._take_best()
        metrics = {
            "task": self.task,
            "seed": self.config.seed,
            "world_size": self.process.world_size,
            "checkpoint": chosen.origin.model_dump(),
            "tables_from": self._tables_from(),
            "initialised": self.initialised,
            "train": {
                "steps": step,
                "dropped_rows_per_epoch": self.source.dropped_rows,
                "last_step_loss": self._last_loss,
                "samples_per_second": rate,
                "resumed_at_step": first,
                "validation": self.stopping.history,
                "restarts": restarts,
            },
            **self.evaluator.held_out(self.model),
        }
        if self.process.is_first:
            (self.folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
            title = f"{self.task}: training loss"
            loss_curve(self.curve, title, self.folder / "loss.png")
        return metrics

    def _restore(self) -> int:
        """Load the last checkpoint, or the tables of a warm start, or nothing."""
        found = checkpoint.latest(self.folder / CHECKPOINTS)
        if found is not None:
            checkpoint.load(found, self.model, self.schema, self.optimizer)
            self.curve = [(step, loss) for step, loss in found.state["curve"]]
            self._last_loss = float(found.state["last_step_loss"])
            self.stopping.load(found.state["validation"])
            if self.source.ledger is not None:
                self.source.ledger.go_on(found.step, found.state["ledger"])
            self.initialised = found.state["initialised"]
            self.precision = MatmulPrecision(*found.state["precision"])
            self._check_tables(found)
            log.info("resumed from %s", found.path)
            return found.step
        if self.task == "retrieval" and self.config.retrieval.init_from:
            self._start_from(Path(self.config.retrieval.init_from))
        if self.warm_start is not None:
            origin = warm_start_names(self.model)
            checkpoint.load_tables(self.warm_start, self.model, self.schema, origin)
            log.info(
                "%d tables warm-started from %s", len(origin), self.warm_start.path
            )
        return 0

    def _tables_from(self) -> dict[str, Any] | None:
        """Names the checkpoint whose tables a ranker starts with."""
        return self.warm_start.origin.model_dump() if self.warm_start else None

    def _check_tables(self, found: checkpoint.Checkpoint) -> None:
        before = found.state["tables_from"]
        if self.warm_start is not None and before is not None:
            check_origin(found.path, Origin.model_validate(before), self.warm_start)

    def _start_from(self, path: Path) -> None:
        """Take the weights of another run's checkpoint."""
        self.initialised = checkpoint.load_weights(
            checkpoint.open_checkpoint(path),
            self.model,
            vocabulary_hashes(self.data),
            self.config.retrieval.allow_new_tables,
        )
        for name in self.initialised:
            log.warning("%s: initialised, not from %s", name, path)

    def _train(self, first: int) -> tuple[float, int]:
        """Run the steps that are left; samples/s and the last step."""
        size, number = self.config.train.batch_size, first
        wanted, device = self.config.train.precision, self.process.device
        hang_seconds = self.config.train.hang_seconds
        self.precision = self.precision or choose_precision(wanted, device)
        steps = StepRunner(
            self.model,
            self.optimizer,
            self.source,
            self.process,
            self.config,
            self.precision,
            first,
        )
        window: list[torch.Tensor] = []
        done = self.curve[-1][0] if self.curve else 0
        with (
            Interrupt() as interrupt,
            Watchdog(self.process, hang_seconds, name=self.task) as watchdog,
            tensorboard_logger(
                self.task, self.folder, self.process.is_first, done
            ) as board,
            Progress(
                f"train {self.task}", (self.source.steps - first) * size, "samples"
            ) as progress,
        ):
            while number < self.source.steps and not self.stopping.stops:
                watchdog.heartbeat(number + 1, steps.batch_identity(number + 1))
                step, note = steps.run_step(interrupt.requested), ""
                number = step.number
                window.append(step.loss)
                board.write(number, step.figures)
                last = number == self.source.steps
                if last or number % self.config.train.log_every == 0:
                    note = self._log(number, window, progress.rate, board)
                    window = []
                with watchdog.paused():
                    stops = self._keep(step, steps, board)
                if stops and not last:
                    raise StoppedError(interrupt.agreed(self.process.device), number)
                progress.advance(size, note)
        steps.detach()
        self.source.repaired.report()
        return progress.rate, number

    def _take_best(self) -> checkpoint.Checkpoint:
        """Go back to the weights of the best evaluation, if there were any.

        They are the model of this stage: what is judged, exported and served.
        """
        last = checkpoint.latest(self.folder / CHECKPOINTS)
        assert last is not None, "training saves at its end"
        step = self.stopping.best_step
        if step is None or step == last.step:
            return last
        path = checkpoint.folder_of(self.folder / CHECKPOINTS, step)
        best = checkpoint.open_checkpoint(path)
        checkpoint.load(best, self.model, self.schema)
        log.info("the best of %d evaluations is %s", len(self.stopping.history), path)
        return best

    def _keep(self, step: Step, steps: StepRunner, board: TensorBoardLogger) -> bool:
        """Evaluate and save, if it is time; whether training was asked to stop here."""
        last = step.number == self.source.steps
        stops = step.stop and self._is_whole(step.number)
        if last or stops or self._is_due(step.number) or self._evaluates(step.number):
            steps.flush()  # a loss that is not finite must stop us before, not after
        is_best = self._validate(step.number, steps, board)
        ends = last or self.stopping.stops
        if ends or stops or is_best or self._is_due(step.number):
            self._save(step.number, step.loss.item())
        return stops

    def _is_whole(self, step: int) -> bool:
        """Whether no dense gradient waits for further steps: it would not be saved."""
        return step == self.source.steps or step % self.optimizer.config.accumulate == 0

    def _is_due(self, step: int) -> bool:
        """The first whole step in every `checkpoint_every`."""
        return self._is_first_of(self.config.train.checkpoint_every, step)

    def _is_first_of(self, every: int, step: int) -> bool:
        within = step % every < self.optimizer.config.accumulate
        return self._is_whole(step) and step >= every and within

    def _evaluates(self, step: int) -> bool:
        """Whether it is time to: at the end too, if it is ever."""
        every = self.config.train.evaluate_every
        last = step == self.source.steps
        return bool(every) and (last or self._is_first_of(every, step))

    def _validate(self, step: int, steps: StepRunner, board: TensorBoardLogger) -> bool:
        """Evaluate, if it is time; whether the model is the best so far."""
        if not self._evaluates(step):
            return False
        steps.detach()
        figures = self.evaluator.figures(self.model, "valid")
        self.model.train()
        for label, found in figures.items():
            names = {f"valid/{label}/{name}": v for name, v in found.items()}
            board.write(step, names)
        return self.stopping.add(step, figures[self.schema.labels[0].name]["log_loss"])

    def _log(
        self,
        step: int,
        window: list[torch.Tensor],
        rate: float,
        board: TensorBoardLogger,
    ) -> str:
        mean = torch.stack(window).mean().item()
        self.curve.append((step, mean))
        board.write(step, {"loss": mean, "samples_per_second": rate})
        return f"loss {mean:.4f}"

    def _save(self, step: int, loss: float) -> None:
        self._last_loss = loss
        ledger = self.source.ledger
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
                "validation": self.stopping.history,
                "ledger": ledger.keep(step) if ledger is not None else [],
                "initialised": self.initialised,
                "tables_from": self._tables_from(),
                "precision": self.precision,
                "steps_an_epoch": self.source.reader.steps,
                "vocabulary": vocabulary_hashes(self.data),
                "config": self.config.model_dump(mode="json"),
            },
            self.config.train.keep_checkpoints,
            self.stopping.best_step,
        )
