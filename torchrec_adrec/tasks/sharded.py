"""Opens a task over all ranks: a new one, or the model of a finished stage.

Whoever reads what training left opens it here: export, ranking, evaluation, serving.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.audit import audit, collections_of
from torchrec_adrec.distributed.checkpoint_files import shapes
from torchrec_adrec.distributed.constraints import ids_per_row
from torchrec_adrec.distributed.optimizer import (
    StepOptimizer,
    build_optimizer,
    fuse_table_optimizer,
)
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.distributed.sharding import meta_device, shard
from torchrec_adrec.errors import CheckpointError, ManifestError, reason
from torchrec_adrec.modules.embeddings import table_of
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.tasks.ranking import RankingTask
from torchrec_adrec.tasks.retrieval import RetrievalTask
from torchrec_adrec.tasks.task import build_task

CHECKPOINTS = "checkpoints"
METRICS = "metrics.json"


class ShardedTask(NamedTuple):
    """A task over all ranks, and what trains it.

    Attributes:
        model: the task in the wrappers of TorchRec and of data parallelism.
        optimizer: of all parameters.
        module: the task inside these wrappers.
    """

    model: DistributedModelParallel
    optimizer: StepOptimizer
    module: RetrievalTask | RankingTask


def build(task: str, schema: Schema, config: Config, process: Process) -> ShardedTask:
    """Build a task, shard its tables over all ranks and make its optimizers.

    The order matters: a table gets its optimizer before it is sharded, or never.

    Args:
        task: `retrieval` or `ranking`.
        schema: of the data.
        config: of the whole run.
        process: this rank.

    Raises:
        ConfigError: `sharding` names no table, or the tables do not fit.
        AssertionError: the audit found a parameter that would not train.
    """
    # Shards are made where they live, so ranks must not draw the same numbers.
    torch.manual_seed((config.seed << 12) + process.rank)
    module = build_task(task, schema, config, meta_device())
    settings = config.retrieval if task == "retrieval" else config.ranking
    fuse_table_optimizer(module, settings.optimizer)
    collections = collections_of(module)
    rows_per_rank = config.train.batch_size // process.world_size
    ids = ids_per_row(schema, module)
    model = shard(module, process, config.sharding, rows_per_rank, ids)
    # Only now has the guard's note its device: the dense optimizer reads that very one.
    optimizer = build_optimizer(model, settings.optimizer, module.guard.bad)
    audit(model, optimizer, collections, schema)
    return ShardedTask(model, optimizer, module)


def final_checkpoint(folder: Path) -> checkpoint.Checkpoint:
    """Open the checkpoint that holds the model of a finished training stage.

    Training names it beside the figures that it reports, once: nobody else chooses
    between the best and the last one.

    Raises:
        CheckpointError: there is none.
        ManifestError: another one stands in its place.
    """
    try:
        recorded = json.loads((folder / METRICS).read_bytes())["checkpoint"]
        origin = Origin.model_validate(recorded)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder} has no model: {METRICS} names no checkpoint ({reason(error)});"
            " it was damaged, or made by another version: remove it and run"
            " `adrec train`"
        ) from None
    path = checkpoint.folder_of(folder / CHECKPOINTS, origin.step)
    final = checkpoint.open_checkpoint(path)
    check_origin(folder / METRICS, origin, final)
    return final


def check_origin(
    path: Path, recorded: Origin | None, loaded: checkpoint.Checkpoint
) -> None:
    """Refuse a file that was made from another checkpoint than the one it is used with.

    Args:
        path: of the file or folder.
        recorded: the checkpoint that it says it was made from.
        loaded: the checkpoint that it is used with.

    Raises:
        ManifestError: names both.
    """
    if recorded != loaded.origin:
        raise ManifestError(
            f"{path} was made from {recorded or 'no checkpoint'}, {loaded.path} is"
            f" {loaded.origin}; make it again from the one that is there"
        )


def restore(
    task: str, run: Path, schema: Schema, config: Config, process: Process
) -> tuple[DistributedModelParallel, checkpoint.Checkpoint]:
    """Open the model of a finished stage, over any number of ranks. Collective.

    Args:
        task: `retrieval` or `ranking`.
        run: the run's folder; the stage's is named as the task.
        schema: of the data; the checkpoint's must be the same.
        config: of the run.
        process: this rank.

    Raises:
        CheckpointError, ManifestError: as `final_checkpoint`, or it does not fit.
    """
    model = build(task, schema, config, process).model
    loaded = final_checkpoint(run / task)
    checkpoint.load(loaded, model, schema)
    return model, loaded


def restore_whole(
    task: str, run: Path, schema: Schema
) -> tuple[Any, checkpoint.Checkpoint]:
    """Open the model of a finished stage in one piece, ready to predict.

    Args:
        task: `retrieval` or `ranking`.
        run: the run's folder; the stage's is named as the task.
        schema: of the data; the checkpoint's must be the same.

    Raises:
        CheckpointError, ManifestError: as `final_checkpoint`, or it does not fit.
    """
    model: nn.Module = build_task(task, schema, stage_settings(run / task))
    loaded = final_checkpoint(run / task)
    checkpoint.load(loaded, model, schema)
    return model.eval(), loaded


def warm_start_names(
    model: nn.Module, towers: checkpoint.Checkpoint, schema: Schema
) -> dict[str, str]:
    """Map a ranker's table parameters to those of a retrieval checkpoint.

    Where the towers read the history from the ads' table, the ranker's table of the
    history begins with that one: its ids are the same.

    Args:
        model: the ranker.
        towers: the retrieval checkpoint.
        schema: of the data.
    """
    names = [name.removeprefix("model.") for name in shapes(towers)]
    by_table = {table_of(name): name for name in names if name.startswith("model.")}
    user, ad = (f"{side}_{schema.items_of(side)}" for side in Side)
    if user not in by_table and ad in by_table:
        by_table[user] = by_table[ad]
    tables = [name for name in model.state_dict() if table_of(name)]
    return {name: by_table.get(table_of(name), name) for name in tables}
