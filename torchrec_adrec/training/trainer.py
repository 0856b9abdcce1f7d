"""The training loop, the same for towers and ranker, on any number of ranks.

Nothing about a step depends on the steps before it but the weights: the rows, the
dropout masks, the learning rates and the position all follow from (seed, step). So a
run that was killed and resumed on as many ranks ends with the bits of one that was not.
"""

import json
import logging
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchrec_adrec.config.run import LOG_LOSS, Config
from torchrec_adrec.data.loader.sampled_split import RetrievedRows
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.interrupt import Interrupt
from torchrec_adrec.distributed.process import Process, restarts_of
from torchrec_adrec.distributed.watchdog import Watchdog
from torchrec_adrec.errors import StoppedError
from torchrec_adrec.evaluation.catalog_judge import CatalogJudge
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.status import Status, send
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.tasks.ranking import warm_starts
from torchrec_adrec.tasks.sharded import build
from torchrec_adrec.tasks.task import columns_of
from torchrec_adrec.training.batch_source import (
    BatchSource,
    negative_rate,
    negatives_of,
)
from torchrec_adrec.training.conditions import check_data
from torchrec_adrec.training.evaluator import Evaluator
from torchrec_adrec.training.first_fit import FirstFit
from torchrec_adrec.training.fit_report import gates_of, restarts_report, write_report
from torchrec_adrec.training.judge import judge_served
from torchrec_adrec.training.precision import choose_precision
from torchrec_adrec.training.run_checkpoints import RunCheckpoints
from torchrec_adrec.training.schedule import Schedule
from torchrec_adrec.training.step_runner import Step, StepRunner
from torchrec_adrec.training.stopping import EarlyStopping
from torchrec_adrec.training.teachers import teach
from torchrec_adrec.training.tensorboard import TensorBoardLogger, tensorboard_logger
from torchrec_adrec.training.training_state import TrainingState
from torchrec_adrec.training.weights import load_best

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Trains one task.

    Args:
        task: `retrieval` or `ranking`.
        config: of the whole run.
        process: this rank.
        data: a prepared data set.
        folder: where checkpoints, curves and metrics go; a run that finds checkpoints
            here goes on from the last one.
        towers: retrieval checkpoint whose tables a ranker starts with, if its settings
            say so, and with whose score its own may be blended.
        first_fit: of a ranker that is fitted again, on the validation rows too.
        retrieved: rows that a ranker reads beside those of the log.
    """

    task: str
    config: Config
    process: Process
    data: Path
    folder: Path
    towers: checkpoint.Checkpoint | None = None
    first_fit: FirstFit | None = None
    retrieved: RetrievedRows | None = None

    def __post_init__(self) -> None:
        config, bounds = self.config, self.config.data.bounds
        train = config.loop_of(self.task)
        self.schema = Schema.load(self.data / "schema.json")
        self.sharded = build(self.task, self.schema, config, self.process)
        self.model, self.optimizer = self.sharded.model, self.sharded.optimizer
        self.taught = teach(self.sharded.module.loss, self.data, self.process.device)
        self.source = BatchSource(
            self.data,
            columns_of(self.task, self.schema),
            train,
            config.seed,
            self.process,
            self.folder,
            bounds,
            negatives_of(self.task, config, self.data, self.folder, self.process),
            negative_rate(self.task, config.ranking),
            self.trained_on,
            self.retrieved,
            names_users=Side.USER in self.taught,
        )
        accumulate, steps = self.optimizer.config.accumulate, self.source.steps
        if self.first_fit is not None:
            steps = self.first_fit.last_step(steps, accumulate)
        self.schedule = Schedule(steps, accumulate, train)
        # A ranker is judged by the click's log loss, towers as their settings say.
        is_retrieval = self.task == "retrieval"
        self.judged_by = config.retrieval.judge if is_retrieval else LOG_LOSS
        is_loss = self.judged_by == LOG_LOSS
        self.state = TrainingState(EarlyStopping(train.patience, is_loss=is_loss))
        is_warm = self.task == "ranking" and warm_starts(config.ranking)
        self.checkpoints = RunCheckpoints(
            self.task,
            config,
            self.process,
            self.data,
            self.folder,
            self.schema,
            self.sharded,
            self.source,
            self.state,
            self.trained_on,
            self.towers if is_warm else None,
        )
        self.evaluator = Evaluator(
            self.task,
            self.data,
            self.folder,
            self.schema,
            self.process,
            train,
            bounds,
            trained_on=self.trained_on,
        )
        check_data(self.task, config, self.data, self.schema)
        self.evaluator.check_every(train.evaluate_every)
        self.catalog_judge: CatalogJudge | None = None
        if train.evaluate_every and not is_loss:
            self.catalog_judge = CatalogJudge(
                self.data, self.schema, config, self.process
            )

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The splits whose rows it reads; never those of the test."""
        return ("train",) if self.first_fit is None else ("train", "valid")

    def fit(self) -> dict[str, Any]:
        """Train to the end and judge on the held-out splits; write `metrics.json`."""
        first = self.checkpoints.restore()
        restarts = restarts_of(self.folder) if self.process.is_first else 0
        if self.process.is_first:
            log.info(
                f"{self.task}: steps {first} to {self.schedule.steps} of"
                f" {self.source.description}, seed {self.config.seed}"
            )
        samples_per_second, last = self._train(first)
        best = load_best(self.model, self.folder, self.state.stopping, self.schema)
        judged = judge_served(
            self.config, best, self.towers, self.evaluator, self.model, self.first_fit
        )
        metrics = {
            "task": self.task,
            "seed": self.config.seed,
            "world_size": self.process.world_size,
            "checkpoint": best.origin.model_dump(),
            "trained_on": self.trained_on,
            "tables_from": self.checkpoints.tables_from,
            "initialised": self.state.initialised,
            "teacher": self.taught,
            "train": {
                "steps": last,
                "planned_steps": self.source.steps,
                "dropped_rows_per_epoch": self.source.dropped_rows,
                "retrieved_rows_per_epoch": self.source.retrieved_rows,
                "last_step_loss": self.state.last_loss,
                "samples_per_second": samples_per_second,
                "resumed_at_step": first,
                "validation": self.state.stopping.history,
                "judged_by": self.judged_by,
                **restarts_report(restarts),
            },
            **judged,
        }
        metrics |= gates_of(self.model)
        if self.process.is_first:
            write_report(self.folder, metrics, self.state.curve)
        return metrics

    def _train(self, first: int) -> tuple[float, int]:
        """Run the steps that are left.

        Returns:
            Samples a second, and the last step.
        """
        train, state = self.config.train, self.state
        # A resumed run makes its products as before: measured again, another way might
        # be faster, and it rounds otherwise.
        state.precision = state.precision or choose_precision(
            train.precision, self.process.device
        )
        runner = StepRunner(
            self.sharded,
            self.source,
            self.process,
            train,
            self.config.seed,
            state.precision,
            first,
        )
        last_logged = state.curve[-1][0] if state.curve else 0
        samples_left = (self.schedule.steps - first) * train.batch_size
        with (
            closing(runner),
            Interrupt() as interrupt,
            Watchdog(self.process, train.hang_seconds, name=self.task) as watchdog,
            tensorboard_logger(
                self.task, self.folder, self.process.is_first, last_logged
            ) as board,
            Progress(f"train {self.task}", samples_left, "samples") as progress,
        ):
            number = first
            losses: list[torch.Tensor] = []
            while number < self.schedule.steps and not state.stopping.should_stop:
                number += 1
                watchdog.heartbeat(number, runner.batch_identity(number))
                step, note = runner.run_step(interrupt.requested), ""
                # Kept as tensors until they are logged: reading one waits for the step.
                losses.append(step.loss)
                board.write(number, step.figures)
                if self.schedule.logs_at(number):
                    note = self._log(number, losses, progress.rate, board)
                    losses = []
                # Evaluation and saving take long without a step; that is no hang.
                with watchdog.paused():
                    stops = self._evaluate_and_save(step, runner, board)
                if stops and not self.schedule.is_last(number):
                    raise StoppedError(interrupt.agree(self.process.device), number)
                progress.advance(train.batch_size, note)
        runner.detach()
        self.source.repaired.report()
        return progress.rate, number

    def _log(
        self,
        step: int,
        losses: list[torch.Tensor],
        samples_per_second: float,
        board: TensorBoardLogger,
    ) -> str:
        """Add a point to the loss curve; return it in words."""
        mean = torch.stack(losses).mean().item()
        self.state.curve.append((step, mean))
        board.write(step, {"loss": mean, "samples_per_second": samples_per_second})
        return f"loss {mean:.4f}"

    def _evaluate_and_save(
        self, step: Step, runner: StepRunner, board: TensorBoardLogger
    ) -> bool:
        """Evaluate and save, if it is time.

        Returns:
            Whether training was asked to stop, and has been saved for that.
        """
        number, schedule = step.number, self.schedule
        # Between two whole steps a stop has to wait: dense gradients are not saved.
        stops = step.stop and schedule.is_whole(number)
        saves = schedule.is_last(number) or stops or schedule.saves_at(number)
        evaluates = schedule.evaluates_at(number)
        if saves or evaluates:
            runner.flush()  # a loss that is not finite must stop us before, not after
        is_best = evaluates and self._validate(number, runner, board)
        if saves or is_best or self.state.stopping.should_stop:
            self.checkpoints.save(number, step.loss.item())
        return stops

    def _validate(
        self, step: int, runner: StepRunner, board: TensorBoardLogger
    ) -> bool:
        """Judge on the validation split; return whether this is the best so far."""
        runner.detach()
        metrics = self.evaluator.figures(self.model, "valid")
        figure = metrics[self.schema.labels[0].name].get(self.judged_by)
        if self.catalog_judge is not None:
            metrics["catalog"] = self.catalog_judge.figures(self.model)
            figure = metrics["catalog"][self.judged_by]
        self.model.train()
        for label, values in metrics.items():
            names = {f"valid/{label}/{name}": v for name, v in values.items()}
            board.write(step, names)
        assert figure is not None, f"no figure {self.judged_by}"
        is_best = self.state.stopping.add(step, figure)
        if self.process.is_first:
            steps = self.schedule.steps
            send(Status("figures", json.dumps(metrics), step, steps, self.task))
            best = ", the best so far" if is_best else ""
            log.info(
                f"{self.task}: step {step}, valid {self.judged_by} {figure:.4f}{best}"
            )
        return is_best
