"""The checkpoints of one run: where it goes on from, and what it leaves behind."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.runtime.files import Origin, catalog_hash, vocabulary_hashes
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import CHECKPOINTS, ShardedTask, check_origin
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.start_tables import start_tables
from torchrec_adrec.training.training_state import TrainingState
from torchrec_adrec.training.weights import load_other_run, load_tower_tables

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunCheckpoints:
    """Reads and writes the checkpoints of a run, on all ranks together.

    Args:
        task: that is trained.
        config: of the whole run, kept in each of them.
        process: this rank.
        data: the prepared data set.
        folder: of the stage.
        schema: of the data.
        sharded: model and optimizer.
        source: of the batches, whose place in the rows is kept too.
        state: what the run knows of its own past.
        trained_on: the splits whose rows are read.
        warm_start: the checkpoint whose tables a ranker starts with.
    """

    task: str
    config: Config
    process: Process
    data: Path
    folder: Path
    schema: Schema
    sharded: ShardedTask
    source: BatchSource
    state: TrainingState
    trained_on: tuple[str, ...]
    warm_start: checkpoint.Checkpoint | None = None

    @property
    def tables_from(self) -> dict[str, Any] | None:
        """The name of the checkpoint whose tables a ranker started with."""
        return self.warm_start.origin.model_dump() if self.warm_start else None

    def restore(self) -> int:
        """Load the last checkpoint of this run, or the first weights of a new one.

        Returns:
            The last step that was taken.
        """
        last = checkpoint.latest(self.folder / CHECKPOINTS)
        if last is not None:
            return self._resume(last)
        model, towers = self.sharded.model, self.config.retrieval
        if self.task == "retrieval" and towers.init_from:
            self.state.initialised = load_other_run(model, towers, self.data)
        if self.task == "retrieval" and towers.start_from:
            start_tables(model, Path(towers.start_from), self.data, self.schema)
        if self.warm_start is not None:
            load_tower_tables(model, self.warm_start, self.schema)
        return 0

    def _resume(self, last: checkpoint.Checkpoint) -> int:
        model, optimizer = self.sharded.model, self.sharded.optimizer
        checkpoint.load(last, model, self.schema, optimizer)
        self.state.load(last.state)
        if self.source.ledger is not None:
            self.source.ledger.go_on(last.step, last.state["ledger"])
        tables_from = last.state["tables_from"]
        if self.warm_start is not None and tables_from is not None:
            check_origin(last.path, Origin.model_validate(tables_from), self.warm_start)
        log.info("resumed from %s", last.path)
        return last.step

    def save(self, step: int, loss: float) -> None:
        """Write a checkpoint after a step of this loss, and drop those too many."""
        self.state.last_loss = loss
        ledger = self.source.ledger
        checkpoint.save(
            self.folder / CHECKPOINTS,
            self.process,
            self.sharded.model,
            self.sharded.optimizer,
            self.schema,
            {
                "task": self.task,
                "step": step,
                "seed": self.config.seed,
                "trained_on": self.trained_on,
                **self.state.to_json(),
                "ledger": ledger.keep(step) if ledger is not None else [],
                "tables_from": self.tables_from,
                "steps_an_epoch": self.source.reader.steps,
                "vocabulary": vocabulary_hashes(self.data),
                "catalog": catalog_hash(self.data),
                "config": self.config.model_dump(mode="json"),
            },
            self.config.train.keep_checkpoints,
            self.state.stopping.best_step,
        )
