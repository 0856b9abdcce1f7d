"""Opens the model of a finished stage with the evaluator that judges it."""

from pathlib import Path

from torch import nn

from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.checkpoint_files import Checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import restore
from torchrec_adrec.training.blend import with_blend
from torchrec_adrec.training.evaluator import Evaluator


def open_evaluator(
    task: str, run: Path, settings: Config, process: Process
) -> tuple[Evaluator, nn.Module, Checkpoint]:
    """Open the model of a task that is served, and what judges it. Collective.

    Args:
        task: `retrieval` or `ranking`.
        run: the run's folder.
        settings: those that it was made with.
        process: this rank.

    Returns:
        The evaluator of what is served (a blend, if there is one), the model, its
        checkpoint.

    Raises:
        CheckpointError: its checkpoint is missing or damaged.
    """
    schema = Schema.load(run / "data/schema.json")
    model, checkpoint = restore(task, run, schema, settings, process)
    evaluator = Evaluator(
        task,
        run / "data",
        run / task,
        schema,
        process,
        settings.train,
        settings.data.bounds,
        trained_on=checkpoint.trained_on,
    )
    return with_blend(evaluator, settings, run, checkpoint), model, checkpoint
