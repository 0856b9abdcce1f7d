"""A task, sharded over all ranks: new, or with the weights of a finished run."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from torchrec_adrec.config import Config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.audit import audit, collections_of
from torchrec_adrec.distributed.constraints import ids_per_row
from torchrec_adrec.distributed.optimizer import build_optimizer, fuse_table_optimizer
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.distributed.sharding import meta_device, shard
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.guard import Guard
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.tasks import build_task

CHECKPOINTS = "checkpoints"


def build(
    task: str, schema: Schema, config: Config, process: Process
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """Model -> optimizer inside backward -> sharding -> the rest's optimizer.

    The order matters: a table gets its optimizer before it is sharded, or never.

    Raises:
        ConfigError: `sharding` names no table, or the tables do not fit.
        AssertionError: the audit found a parameter that would not train.
    """
    # Shards are made where they live, so ranks must not draw the same numbers.
    torch.manual_seed((config.seed << 12) + process.rank)
    model = build_task(task, schema, config, meta_device())
    settings = config.towers if task == "retrieval" else config.ranker
    fuse_table_optimizer(model, settings.optimizer)
    collections = collections_of(model)
    share = config.train.batch_size // process.world_size
    sharded = shard(model, process, config.sharding, share, ids_per_row(schema))
    optimizer = build_optimizer(sharded, settings.optimizer, guard_of(sharded).bad)
    audit(sharded, optimizer, collections, schema)
    return sharded, optimizer


def task_of(model: DistributedModelParallel) -> Any:
    """The task inside its wrappers: of several ranks one is DDP's."""
    task = model.module
    return getattr(task, "module", task)


def guard_of(model: DistributedModelParallel) -> Guard:
    """The note on whether a loss was not finite, which optimizer and trainer share."""
    guard: Guard = task_of(model).guard
    return guard


def final_checkpoint(folder: Path) -> checkpoint.Checkpoint:
    """The best checkpoint of a finished training stage, or the last one.

    There is a best one if training evaluated on the way (`train.evaluate_every`).

    Raises:
        CheckpointError: there is none.
    """
    found = checkpoint.best(folder / CHECKPOINTS)
    found = found or checkpoint.latest(folder / CHECKPOINTS)
    if found is None:
        raise CheckpointError(f"{folder} has no checkpoint; run `adrec train` first")
    return found


def restore(
    task: str, run: Path, schema: Schema, config: Config, process: Process
) -> tuple[DistributedModelParallel, checkpoint.Checkpoint]:
    """A sharded model with the weights of a finished run, at any world size."""
    model, _ = build(task, schema, config, process)
    start = final_checkpoint(run / task)
    checkpoint.load(start, model, schema)
    return model, start


def warm_start_names(model: nn.Module) -> dict[str, str]:
    """A ranker's table parameters -> the same tables in a retrieval checkpoint."""
    return {
        name: name.replace(f"model.{side}_tables.", f"model.{side}_tower.tables.")
        for name in model.state_dict()
        for side in Side
        if name.startswith(f"model.{side}_tables.")
    }
