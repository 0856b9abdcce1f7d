"""Trains a stage; a ranker, if its settings say so, once more with the validation rows.

In a split by time the validation rows are later than all training rows, and so the most
like those that will be served. A ranker is then fitted twice: on the training rows,
judged on the validation rows, and anew on both with what the first fit has found. Test
rows are in neither.
"""

from pathlib import Path
from typing import Any

from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.checkpoint_files import Checkpoint, latest
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError, ConfigError
from torchrec_adrec.tasks.sharded import CHECKPOINTS, METRICS
from torchrec_adrec.training.first_fit import FirstFit
from torchrec_adrec.training.mine import mine
from torchrec_adrec.training.retrieved_rows import draw_retrieved_rows
from torchrec_adrec.training.trainer import Trainer

FIRST_FIT = "first_fit"  # its folder, inside that of the stage
TRAIN, BOTH = ("train",), ("train", "valid")


def fit_stage(
    task: str,
    config: Config,
    process: Process,
    data: Path,
    folder: Path,
    towers: Checkpoint | None = None,
) -> dict[str, Any]:
    """Train a task to the end, and refit it where `ranking.refit` asks. Collective.

    A run that was interrupted goes on with the fit in which it was.

    Args:
        task, config, process, data, folder, towers: as of `Trainer`.

    Returns:
        What `metrics.json` holds of the model that is served.

    Raises:
        ConfigError: a refit without validation rows.
        CheckpointError: the folder holds a fit on other rows.
    """
    retrieved = None
    if task == "ranking":
        retrieved = draw_retrieved_rows(config, process, data, folder, towers)
    else:
        mine(config, process, data, folder)
    if task != "ranking" or not config.ranking.refit:
        _check_rows(folder, TRAIN)
        trainer = Trainer(task, config, process, data, folder, towers, None, retrieved)
        return trainer.fit()
    _check_rows(folder, BOTH)
    if not any((data / "valid").glob("part-*.parquet")):
        raise ConfigError(
            f"ranking.refit is set, but {data / 'valid'} has no rows that it could add;"
            " prepare with data.split.valid above 0, or set ranking.refit=false"
        )
    first = folder / FIRST_FIT
    _check_rows(first, TRAIN)
    is_finished = (first / METRICS).exists()
    process.barrier()
    if not is_finished:
        if process.is_first:
            first.mkdir(exist_ok=True)
        process.barrier()
        Trainer(task, config, process, data, first, towers, None, retrieved).fit()
        process.barrier()
    # No row is left to evaluate on while it trains.
    train = {"evaluate_every": 0, "patience": None}
    config = config.model_copy(update={"train": config.train.model_copy(update=train)})
    both = FirstFit.open(first), retrieved
    return Trainer(task, config, process, data, folder, towers, *both).fit()


def _check_rows(folder: Path, splits: tuple[str, ...]) -> None:
    """Refuse to go on with weights that come from the rows of other splits."""
    last = latest(folder / CHECKPOINTS)
    if last is not None and last.trained_on != splits:
        raise CheckpointError(
            f"{last.path} was trained on {' + '.join(last.trained_on)}, expected"
            f" {' + '.join(splits)}: with another ranking.refit a ranker is trained"
            f" anew; remove {folder}"
        )
