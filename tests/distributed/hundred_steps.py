"""A hundred steps by the trainer, and the second fifty again from its checkpoint.

Run by real gloo ranks and by pytest itself, on any number of ranks. The towers and the
ranker are smooth and without dropout, whose masks are drawn per rank.
"""

import shutil
from pathlib import Path

from conftest import SMALL
from fifty_steps import results_of, whole_weights
from planted import Fault, smooth
from rounding import Results, reorder

from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.tasks.sharded import CHECKPOINTS
from torchrec_adrec.training.trainer import Trainer

TASKS = ("retrieval", "ranking")
STEPS, HALF = 100, 50
ROWS = {"rows": 16_000, "ads": 600, "users": 400}
OVERRIDES = (
    "train.log_every=1",
    "retrieval.dropout=0",
    "ranking.dropout=0",
    "ranking.tables=frozen",
)


def first_run(task: str, folder: Path, process: Process) -> Results:
    """All steps, saved at the half and at the end in `folder / task`."""
    towers = None
    if task == "ranking":
        towers = checkpoint.latest(folder / "retrieval" / CHECKPOINTS)
    trainer = _trainer(task, folder, folder / task, process, towers)
    return _train(trainer, 0)


def second_half(
    task: str,
    folder: Path,
    out: Path,
    process: Process,
    order: int | None = None,
    fault: Fault | None = None,
) -> Results:
    """The steps after the half, resumed from the first run's checkpoint.

    Args:
        out: a folder that is not there yet.
        order: seed of another order of every step's rows; on one rank only.
        fault: planted before the first of these steps.
    """
    half = f"{CHECKPOINTS}/step-{HALF:08d}"
    if process.is_first:
        shutil.copytree(folder / task / half, out / half)
    process.barrier()
    trainer = _trainer(task, folder, out, process)
    if order is not None:
        assert process.world_size == 1
        reorder(trainer.source, order)
    if fault is not None:
        fault(trainer.model)
    return _train(trainer, HALF)


def _trainer(
    task: str,
    folder: Path,
    out: Path,
    process: Process,
    warm_start: checkpoint.Checkpoint | None = None,
) -> Trainer:
    config = load_config(None, [*SMALL, *OVERRIDES])
    trainer = Trainer(task, config, process, folder / "data", out, warm_start)
    smooth(trainer.model)
    assert trainer.source.steps == STEPS
    return trainer


def _train(trainer: Trainer, first: int) -> Results:
    assert trainer.checkpoints.restore() == first
    trainer._train(first)
    assert [step for step, _ in trainer.state.curve] == list(range(1, STEPS + 1))
    losses = [loss for step, loss in trainer.state.curve if step > first]
    return results_of(losses, whole_weights(trainer.model))
