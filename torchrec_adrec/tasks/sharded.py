"""A task, sharded over all ranks: new, or the model of a finished stage.

Whoever reads what training left opens it here: export, ranking, evaluation, serving.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.audit import audit, collections_of
from torchrec_adrec.distributed.constraints import ids_per_row
from torchrec_adrec.distributed.optimizer import build_optimizer, fuse_table_optimizer
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.distributed.sharding import meta_device, shard
from torchrec_adrec.errors import CheckpointError, ManifestError
from torchrec_adrec.runs.stages import CONFIG
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.tasks.guard import Guard
from torchrec_adrec.tasks.task import build_task

CHECKPOINTS = "checkpoints"
METRICS = "metrics.json"


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
    settings = config.retrieval if task == "retrieval" else config.ranking
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
    """The checkpoint that holds the model of a finished training stage.

    Training names it beside the figures that it reports, once: nobody else chooses
    between the best and the last one.

    Raises:
        CheckpointError: there is none.
        ManifestError: another one stands in its place.
    """
    try:
        named = json.loads((folder / METRICS).read_text())["checkpoint"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder} has no model: {METRICS} names no checkpoint ({error}); it was"
            " damaged, or made by another version: remove it and run `adrec train`"
        ) from None
    origin = Origin.model_validate(named)
    path = checkpoint.folder_of(folder / CHECKPOINTS, origin.step)
    found = checkpoint.open_checkpoint(path)
    check_origin(folder / METRICS, origin, found)
    return found


def check_origin(
    what: Path, recorded: Origin | None, loaded: checkpoint.Checkpoint
) -> None:
    """Refuse what was made from another checkpoint than the one it is used with.

    Raises:
        ManifestError: names both.
    """
    if recorded != loaded.origin:
        raise ManifestError(
            f"{what} was made from {recorded or 'no checkpoint'}, {loaded.path} is"
            f" {loaded.origin}; make it again from the one that is there"
        )


def restore(
    task: str, run: Path, schema: Schema, config: Config, process: Process
) -> tuple[DistributedModelParallel, checkpoint.Checkpoint]:
    """The model of a finished stage, sharded over any number of ranks. Collective."""
    model, _ = build(task, schema, config, process)
    loaded = final_checkpoint(run / task)
    checkpoint.load(loaded, model, schema)
    return model, loaded


def restore_whole(
    task: str, run: Path, schema: Schema
) -> tuple[Any, checkpoint.Checkpoint]:
    """The model of a finished stage in one piece, ready to predict."""
    model: nn.Module = build_task(task, schema, load_config(run / task / CONFIG))
    loaded = final_checkpoint(run / task)
    checkpoint.load(loaded, model, schema)
    return model.eval(), loaded


def warm_start_names(model: nn.Module) -> dict[str, str]:
    """A ranker's table parameters -> the same tables in a retrieval checkpoint."""
    return {
        name: name.replace(f"model.{side}_tables.", f"model.{side}_tower.tables.")
        for name in model.state_dict()
        for side in Side
        if name.startswith(f"model.{side}_tables.")
    }
