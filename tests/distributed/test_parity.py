"""Training that goes on with another number of ranks is training that stayed alone.

Two ranks train the towers and a ranker over their frozen tables; from the checkpoint at
half their way two ranks and one go on, over the same rows.
"""

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import prepare_world
from hundred_steps import ROWS, TASKS, second_half
from planted import faults
from rounding import ORDERS, Results, Rounding

from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import process_group

SCRIPT = """
from pathlib import Path
import torch
from hundred_steps import TASKS, first_run, second_half
from torchrec_adrec.distributed.process import process_group

folder = Path({folder!r})
with process_group("cpu") as process:
    results = {{}}
    for task in TASKS:
        whole = first_run(task, folder, process)
        resumed = second_half(task, folder, folder / f"resumed-{{task}}", process)
        results[task] = whole, resumed
    if process.is_first:
        torch.save(results, folder / "results.pt")
"""
OnOne = Callable[..., Results]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
) -> Path:
    """The data, and what two ranks made of it."""
    folder = tmp_path_factory.mktemp("parity")
    prepare_world(folder / "data", **ROWS)
    done = ranks_script(2, SCRIPT.format(folder=str(folder)))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, tuple[Results, Results]]:
    """Task to what the whole run ended with, and its second half done again."""
    return dict(torch.load(folder / "results.pt"))


@pytest.fixture(scope="module")
def one_rank(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OnOne:
    """The second half of a task on one rank."""

    def run(task: str, **changes: Any) -> Results:
        out = tmp_path_factory.mktemp("one") / task
        with process_group("cpu") as process:
            return second_half(task, folder, out, process, **changes)

    return run


@pytest.fixture(scope="module")
def rounding_of(one_rank: OnOne) -> Callable[[str], Rounding]:
    @cache
    def measure(task: str) -> Rounding:
        reordered = [one_rank(task, order=order) for order in ORDERS]
        return Rounding(f"fifty steps of {task}", one_rank(task), *reordered)

    return measure


Measure = Callable[[str], Rounding]
FAULTS = {
    "retrieval": faults("ad_tower.tables.embedding_bags.ad_C14.weight"),
    "ranking": faults("head.heads.hidden.user.weight"),  # its tables are frozen
}


@pytest.mark.parametrize("task", TASKS)
def test_fifty_steps_from_one_checkpoint(
    task: str, two_ranks: dict[str, tuple[Results, Results]], rounding_of: Measure
) -> None:
    whole, resumed = two_ranks[task]
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, resumed["weights"][name]), name
    rounding_of(task).holds("two ranks", resumed)


@pytest.mark.parametrize(
    ("task", "fault"), [(task, fault) for task in TASKS for fault in FAULTS[task]]
)
def test_faults_are_no_rounding(
    task: str, fault: str, one_rank: OnOne, rounding_of: Measure
) -> None:
    rounding_of(task).sees(fault, one_rank(task, fault=FAULTS[task][fault]))


@pytest.mark.parametrize("task", TASKS)
def test_optimizers_that_begin_anew_are_no_rounding(
    task: str,
    one_rank: OnOne,
    rounding_of: Measure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounding = rounding_of(task)
    load = checkpoint.load

    def weights_alone(saved: Any, model: Any, schema: Any, _optimizer: Any) -> None:
        load(saved, model, schema)

    monkeypatch.setattr(checkpoint, "load", weights_alone)
    rounding.sees("optimizers that begin anew", one_rank(task))
