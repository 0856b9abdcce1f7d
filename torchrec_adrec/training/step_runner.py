"""One optimizer step after the other, over all ranks."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.alone import AloneLoop, can_be_alone
from torchrec_adrec.distributed.optimizer import StepOptimizer
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import NonFiniteLossError
from torchrec_adrec.models.tower import TowerHead
from torchrec_adrec.tasks.after_lookup import Outputs
from torchrec_adrec.tasks.sharded import guard_of
from torchrec_adrec.training.alarm import DeadModelAlarm
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.diagnose import find_nonfinite
from torchrec_adrec.training.graphs import run_as_graphs
from torchrec_adrec.training.late import LateReader
from torchrec_adrec.training.model_statistics import ModelStatistics
from torchrec_adrec.training.precision import MatmulPrecision


@dataclass(frozen=True)
class Step:
    """What is known of a step that was taken.

    Attributes:
        number: from 1.
        loss: the global loss, a scalar tensor on the device.
        stop: whether a rank was asked to stop, in the step before; the same on all.
        figures: signs of health, in the steps that look for them.
    """

    number: int
    loss: Tensor
    stop: bool
    figures: dict[str, float]


class StepRunner:
    """Takes the steps of a source through the train pipeline. Collective.

    Args:
        precision: how matrix products are made.
        first: the last step that was taken before.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: StepOptimizer,
        source: BatchSource,
        process: Process,
        config: Config,
        precision: MatmulPrecision,
        first: int = 0,
    ) -> None:
        self.model, self.optimizer, self.process = model, optimizer, process
        self.source, self.config, self.number = source, config, first
        self.use_bfloat16, self._settled = precision.use_bfloat16, False
        torch.set_float32_matmul_precision(precision.setting)
        if config.train.compile:
            compile_heads(model)
        self.alarm = DeadModelAlarm(source.schema, config.train.dead_model)
        self.statistics = ModelStatistics(model, optimizer)
        self.guard = guard_of(model)
        self.late = LateReader(process.device)
        self._stop = False
        self.pipeline = _pipeline(model, optimizer, process)
        alone_on_gpu = process.device.type == "cuda" and process.world_size == 1
        if alone_on_gpu and config.train.graphs:
            run_as_graphs(model, optimizer, source.schema)
        self.batches: Iterator[Batch] = source.batches(first)
        model.train()

    def run_step(self, asked_to_stop: bool = False) -> Step:
        """Take the next one, and look at the one before.

        Args:
            asked_to_stop: whether this rank was.

        Raises:
            NonFiniteLossError: of the step before; names rows and features; no weight
                has changed since.
            TrainingError: the model is dead.
        """
        self.number += 1
        self._seed()
        self.optimizer.at(self.number, self.source.steps)
        self.guard.asked_to_stop = asked_to_stop
        every = self.config.train.health_every
        looks = bool(every) and self.number % every == 0
        with self.statistics.watched() if looks else nullcontext():
            out = self._progress()
        watched = out.logits[: self._rows_watched()]
        self.late.ask(self.number, out.report, watched)
        self._look(self.number)
        if self.process.world_size == 1:  # nobody to agree with
            self._stop = asked_to_stop
        if not self._settled:
            self._settle()
        figures = self.statistics.figures(out.ads) if looks else {}
        return Step(self.number, out.report[0], self._stop, figures)

    def flush(self) -> None:
        """Look at every step that was taken: before a model is saved or judged.

        Raises:
            NonFiniteLossError, TrainingError: as `run_step`.
        """
        self._look(None)

    def _look(self, before: int | None) -> None:
        """At the steps below `before` that were not looked at."""
        while (late := self.late.read(before)) is not None:
            report, logits = late.tensors
            loss, stopping, bad = report.tolist()
            self._stop = stopping > 0
            batch = self.source.begin(late.number)
            if bad:
                self.detach()
                raise self._diagnosed(loss, late.number)
            if len(logits) and self.alarm.is_open:
                rows, labels = logits.shape
                self.alarm.look(logits, batch.labels[:rows, :labels], batch)

    def _rows_watched(self) -> int:
        """Of this step by the alarm; while the rates rise no model is alive yet."""
        if self.number <= self.optimizer.config.warmup_steps:
            return 0
        return self.alarm.rows_of(self.number)

    def batch_identity(self, step: int) -> Sequence[Tensor]:
        """Tensors on the host that tell a step's rows, for the watchdog; of the first
        one, which is not read yet, none.
        """
        batch = self.source.ahead(step)
        return () if batch is None else (batch.ad_ids, batch.labels)

    def detach(self) -> None:
        """Take the model out of the pipeline, to evaluate or save it; it goes back by
        itself.
        """
        self.pipeline.detach()
        gc.unfreeze()
        self._settled = False

    def _settle(self) -> None:
        """What exists after a step will exist after the next: Python's collector need
        not walk through it again and again, which took 5% of a step.
        """
        gc.collect()
        gc.freeze()
        self._settled = True

    def _progress(self) -> Outputs:
        device = self.process.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.use_bfloat16):
            out: Outputs = self.pipeline.progress(self.batches)
        return out

    def _seed(self) -> None:
        """What is drawn in a step depends on seed, step and rank alone."""
        place = (self.config.seed, self.number, self.process.rank)
        # Mixed: a CPU's generator takes the low 32 bits of a seed and drops the rest.
        value = int(np.random.SeedSequence(place).generate_state(1)[0])
        # Of the generators that are in use: torch.manual_seed looks for all that there
        # could be, .4 ms a step.
        torch.default_generator.manual_seed(value)
        if self.process.device.type == "cuda":
            torch.cuda.manual_seed(value)

    def _diagnosed(self, loss: float, number: int) -> NonFiniteLossError:
        """Say which rows, and what in the model is not finite. Collective."""
        batch = self.source.begin(number).to(self.process.device)
        found = find_nonfinite(self.model, batch, self.source.schema)
        what = ", ".join(found[:5]) or "neither inputs nor weights: the loss alone"
        return NonFiniteLossError(
            f"the loss became {loss} at step {number}, before any weight changed. Rank"
            f" {self.process.rank}: {self.source.where(number)}. Not finite: {what}."
            " Lower the learning rates, or set optimizer.clip_norm"
        )


def _pipeline(
    model: DistributedModelParallel, optimizer: StepOptimizer, process: Process
) -> Any:
    if can_be_alone(model, process.world_size):
        return AloneLoop(model, optimizer, process.device)
    # A batch is asked for after the forward pass is queued: the device then has work
    # while the host reads and copies.
    return TrainPipelineSparseDist(
        model, optimizer, process.device, enqueue_batch_after_forward=True
    )


def compile_heads(model: torch.nn.Module) -> None:
    """torch.compile of the towers' dense parts, in place."""
    for module in model.modules():
        if isinstance(module, TowerHead):
            module.encode = torch.compile(module.encode, dynamic=False)  # type: ignore[method-assign]
