"""Takes one optimizer step after the other, over all ranks.

Nothing here waits for the device. What the host wants to know of a step, its loss among
it, is copied behind the step and read when the next step has been queued: `run_step`
takes a step and checks the one before.
"""

import gc
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.train import TrainConfig
from torchrec_adrec.distributed.alone import AloneLoop, can_be_alone
from torchrec_adrec.distributed.pipeline import TrainPipeline
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import NonFiniteLossError
from torchrec_adrec.models.tower import TowerHead
from torchrec_adrec.tasks.after_lookup import Outputs
from torchrec_adrec.tasks.retrieval import RetrievalLoss
from torchrec_adrec.tasks.sharded import ShardedTask
from torchrec_adrec.training.alarm import DeadModelAlarm
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.diagnose import find_nonfinite
from torchrec_adrec.training.graphs import run_as_graphs
from torchrec_adrec.training.late import LateReader
from torchrec_adrec.training.model_statistics import ModelStatistics
from torchrec_adrec.training.precision import MatmulPrecision
from torchrec_adrec.training.recompute import recompute_activations


@dataclass(frozen=True)
class Step:
    """What is known of a step as soon as it was taken.

    Attributes:
        number: from 1.
        loss: the global loss, a scalar tensor on the device.
        stop: whether any rank was asked to stop, in the step before; the same on all.
        figures: the model's statistics, in the steps that measure them.
    """

    number: int
    loss: Tensor
    stop: bool
    figures: dict[str, float]


class StepRunner:
    """Takes the steps of a source through the train pipeline. Collective.

    Args:
        sharded: model, optimizer and task.
        source: of the batches.
        process: this rank.
        train: how the steps are made and watched.
        seed: of everything that is drawn in a step.
        precision: how matrix products are made.
        first: the last step that was taken before.
    """

    def __init__(
        self,
        sharded: ShardedTask,
        source: BatchSource,
        process: Process,
        train: TrainConfig,
        seed: int,
        precision: MatmulPrecision,
        first: int = 0,
    ) -> None:
        self.model, self.optimizer = sharded.model, sharded.optimizer
        self.guard, self.loss = sharded.module.guard, sharded.module.loss
        self.source, self.process, self.seed = source, process, seed
        self.statistics_every, self.number = train.health_every, first
        self.use_bfloat16 = precision.use_bfloat16
        torch.set_float32_matmul_precision(precision.setting)
        if train.compile:
            compile_heads(self.model)
        recomputes = train.checkpoint_activations and recompute_activations(self.model)
        learns_clicks = (
            not isinstance(self.loss, RetrievalLoss) or self.loss.config.alpha > 0
        )
        self.alarm = DeadModelAlarm(source.schema, train.dead_model, learns_clicks)
        self.statistics = ModelStatistics(self.model, self.optimizer)
        self.late = LateReader(process.device)
        self._stop = self._is_frozen = False
        self.pipeline = _pipeline(sharded, process)
        is_alone_on_gpu = process.device.type == "cuda" and process.world_size == 1
        # A captured graph cannot restore the generator for a second computation.
        can_capture = not recomputes and not _shapes_change(self.loss)
        if is_alone_on_gpu and train.graphs and can_capture:
            run_as_graphs(sharded.module.after_lookup, self.optimizer, source.schema)
        self.batches: Generator[Batch] = source.batches(first)
        self.model.train()

    def run_step(self, asked_to_stop: bool = False) -> Step:
        """Take the next step, and check the one before.

        Args:
            asked_to_stop: whether this rank was.

        Raises:
            NonFiniteLossError: of the step before; names rows and features; no weight
                has changed since.
            TrainingError: the model is dead.
        """
        self.number += 1
        seed_generators(self.seed, self.number, self.process)
        self.optimizer.prepare_step(self.number, self.source.steps)
        if isinstance(self.loss, RetrievalLoss):
            self.loss.progress = self.number / self.source.steps
        self.guard.asked_to_stop = asked_to_stop  # travels with the loss
        every = self.statistics_every
        is_measured = bool(every) and self.number % every == 0
        with self.statistics.watched() if is_measured else nullcontext():
            outputs = self._run_pipeline()
        watched_logits = outputs.logits[: self._rows_for_alarm()]
        self.late.ask(self.number, outputs.report, watched_logits)
        self._check_steps(before=self.number)
        if self.process.world_size == 1:  # nobody to agree with
            self._stop = asked_to_stop
        if not self._is_frozen:
            self._freeze_objects()
        figures = self.statistics.figures(outputs.ads) if is_measured else {}
        return Step(self.number, outputs.report[0], self._stop, figures)

    def flush(self) -> None:
        """Check every step that was taken: before a model is saved or judged.

        Raises:
            NonFiniteLossError, TrainingError: as `run_step`.
        """
        self._check_steps(before=None)

    def batch_identity(self, step: int) -> Sequence[Tensor]:
        """Return tensors on the host that tell a step's rows, for the watchdog.

        Of the first step, which is not read yet, there are none.
        """
        batch = self.source.ahead(step)
        return () if batch is None else (batch.ad_ids, batch.labels)

    def close(self) -> None:
        """End reading: other ranks may be waiting for what this one would decode."""
        self.batches.close()

    def detach(self) -> None:
        """Take the model out of the pipeline, to evaluate or save it. The next step
        puts it back.
        """
        self.pipeline.detach()
        gc.unfreeze()
        self._is_frozen = False

    def _run_pipeline(self) -> Outputs:
        device = self.process.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.use_bfloat16):
            outputs: Outputs = self.pipeline.progress(self.batches)
        return outputs

    def _rows_for_alarm(self) -> int:
        """Rows of this step that the alarm sees; while the learning rates rise, no
        model is alive yet.
        """
        if self.number <= self.optimizer.config.warmup_steps:
            return 0
        return self.alarm.rows_to_watch(self.number)

    def _check_steps(self, before: int | None) -> None:
        """Look at what arrived of the steps below `before` (None: of all)."""
        while (arrived := self.late.read(before)) is not None:
            report, logits = arrived.tensors
            loss, stopping, bad = report.tolist()
            self._stop = stopping > 0
            batch = self.source.begin(arrived.step)
            if bad:
                self.detach()
                raise self._nonfinite_error(loss, arrived.step)
            # Rows of the step after a window's last one were asked for in vain.
            if len(logits) and self.alarm.is_open:
                rows, labels = logits.shape
                self.alarm.observe(logits, batch.labels[:rows, :labels], batch)

    def _nonfinite_error(self, loss: float, step: int) -> NonFiniteLossError:
        """Say which rows, and what in the model is not finite. Collective."""
        batch = self.source.begin(step).to(self.process.device)
        names = find_nonfinite(self.model, batch, self.source.schema)
        causes = ", ".join(names[:5]) or "neither inputs nor weights: the loss alone"
        return NonFiniteLossError(
            f"the loss became {loss} at step {step}, before any weight changed. Rank"
            f" {self.process.rank}: {self.source.where(step)}. Not finite: {causes}."
            " Lower the learning rates, or set optimizer.clip_norm"
        )

    def _freeze_objects(self) -> None:
        """Take everything that is alive out of Python's garbage collection.

        What exists after a step will exist after the next one: walking through it again
        and again took 5% of a step.
        """
        gc.collect()
        gc.freeze()
        self._is_frozen = True


def _shapes_change(loss: nn.Module) -> bool:
    """Whether a step's shapes depend on its number, which a captured graph would not
    see: it would keep the number of negatives of the step that it was captured in.
    """
    return isinstance(loss, RetrievalLoss) and loss.config.hardest_rise > 0


def seed_generators(seed: int, step: int, process: Process) -> None:
    """Let what is drawn in a step depend on seed, step and rank alone.

    Args:
        seed: of the run.
        step: its number.
        process: this rank; dropout draws other masks on every rank.
    """
    # Mixed: a CPU's generator takes the low 32 bits of a seed and drops the rest.
    mixed = np.random.SeedSequence((seed, step, process.rank)).generate_state(1)
    value = int(mixed[0])
    # Only the generators that are in use: torch.manual_seed looks for all that there
    # could be, which takes 0.4 ms a step.
    torch.default_generator.manual_seed(value)
    if process.device.type == "cuda":
        torch.cuda.manual_seed(value)


def _pipeline(sharded: ShardedTask, process: Process) -> Any:
    """What takes a step: a loop of our own for a rank that is alone, else TorchRec's
    pipeline, which overlaps the exchange of the next batch's ids with this batch.
    """
    if can_be_alone(sharded.model, process.world_size):
        return AloneLoop(sharded.model, sharded.optimizer, process.device)
    # A batch is asked for after the forward pass is queued: the device then has work
    # while the host reads and copies.
    return TrainPipeline(
        sharded.model,
        sharded.optimizer,
        process.device,
        enqueue_batch_after_forward=True,
    )


def compile_heads(model: nn.Module) -> None:
    """Apply torch.compile to the towers' dense parts, in place."""
    for module in model.modules():
        if isinstance(module, TowerHead):
            module.encode = torch.compile(module.encode, dynamic=False)  # type: ignore[method-assign]
