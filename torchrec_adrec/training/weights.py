"""Loads weights into a model: those it starts with, and in the end the best ones.

A run that is resumed needs none of this: it loads its own last checkpoint.
"""

import logging
from pathlib import Path

from torch import nn

from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.runtime.files import vocabulary_hashes
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import CHECKPOINTS, warm_start_names
from torchrec_adrec.training.stopping import EarlyStopping

log = logging.getLogger(__name__)


def load_other_run(model: nn.Module, config: RetrievalConfig, data: Path) -> list[str]:
    """Take the weights of another run's checkpoint (`--from`). Collective.

    Args:
        model: the sharded towers.
        config: names the checkpoint, and says whether tables may be new.
        data: the prepared data set, whose ids must mean what they meant there.

    Returns:
        The parameters that were left as they were initialised.

    Raises:
        CheckpointError: it does not fit.
    """
    path = Path(config.init_from)
    initialised = checkpoint.load_weights(
        checkpoint.open_checkpoint(path),
        model,
        vocabulary_hashes(data),
        config.allow_new_tables,
    )
    for name in initialised:
        log.warning("%s: initialised, not from %s", name, path)
    return initialised


def load_tower_tables(
    model: nn.Module, towers: checkpoint.Checkpoint, schema: Schema
) -> None:
    """Start a ranker with the towers' tables. Collective.

    Args:
        model: the sharded ranker.
        towers: a retrieval checkpoint.
        schema: of the data; the checkpoint's must be the same.

    Raises:
        CheckpointError: it does not fit.
    """
    names = warm_start_names(model, towers, schema)
    checkpoint.load_tables(towers, model, schema, names)
    log.info("%d tables warm-started from %s", len(names), towers.path)


def load_best(
    model: nn.Module, folder: Path, stopping: EarlyStopping, schema: Schema
) -> checkpoint.Checkpoint:
    """Go back to the weights of the best evaluation, if there were any. Collective.

    They are the model of a stage: what is judged, exported and served.

    Args:
        model: as it is after the last step.
        folder: of the stage.
        stopping: knows the best step.
        schema: of the data.

    Returns:
        The checkpoint that the model is now: the best one, else the last one.
    """
    last = checkpoint.latest(folder / CHECKPOINTS)
    assert last is not None, "training saves at its end"
    # The model is that of the last checkpoint already: nothing has to be loaded.
    if stopping.best_step is None or stopping.best_step == last.step:
        return last
    path = checkpoint.folder_of(folder / CHECKPOINTS, stopping.best_step)
    best = checkpoint.open_checkpoint(path)
    checkpoint.load(best, model, schema)
    log.info("the best of %d evaluations is %s", len(stopping.history), path)
    return best
