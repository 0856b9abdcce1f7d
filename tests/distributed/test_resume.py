"""A run that was stopped, or lost a rank, ends as one that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, on_ranks

from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.distributed.checkpoint_report import compare
from torchrec_adrec.pipeline.pipeline import COMPONENTS
from torchrec_adrec.training.ledger_report import audit_stage

TRAIN = ("train", "retrieval", "train.ledger=true", "--out")


def start(*launcher: str | Path) -> subprocess.Popen[str]:
    """Start two ranks; what they say goes to a pipe."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        list(map(str, launcher)),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PATH": path},
    )


def ranks_below(pid: int) -> Iterator[int]:
    """The processes of all ranks that a launcher started."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            if b"\0RANK=" in Path(f"/proc/{child}/environ").read_bytes():
                yield child
            else:
                yield from ranks_below(child)


def wait_for(checkpoint: str, run: Path, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(run.glob(f"retrieval.partial-*/checkpoints/{checkpoint}")):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)


def stop_after(checkpoint: str, run: Path) -> int:
    """Send the launcher SIGTERM; the step at which it says that it has saved."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    options = ("--max-restarts", "3", "-m", "torchrec_adrec")
    job = start(sys.executable, "-m", *launcher, *options, *TRAIN, run)
    wait_for(checkpoint, run, job)
    job.terminate()
    said, _ = job.communicate(timeout=60)
    assert job.returncode != 0 and not (run / "retrieval").exists()
    assert said.count("saved; the same command goes on") == 2, said
    # nor started again
    assert "| resumed from" not in said
    return int(said.split("interrupted at step ")[1].split(",")[0])


def kill_a_rank_after(checkpoint: str, run: Path) -> None:
    """Nobody starts it again: it must end by itself."""
    torchx = Path(sys.executable).with_name("torchx")
    component = (f"{COMPONENTS}:ddp", "-j", "1x2", "--max_restarts", "1", "--")
    job = start(torchx, "run", "-s", "local_cwd", *component, *TRAIN, run)
    wait_for(checkpoint, run, job)
    os.kill(sorted(ranks_below(job.pid))[-1], signal.SIGKILL)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said


def last_of(stage: Path) -> Checkpoint:
    last = checkpoint.latest(stage / "checkpoints")
    assert last is not None
    return last


def stop_one_like(finished: Path, run: Path) -> int:
    """Stop a run after step 50 that makes its products as the finished one did.

    How they are made is measured at the start of a run and kept in its checkpoints.
    Where two ways are about as fast, the next run may choose the other one: it rounds
    otherwise, and tells nothing of stopping.
    """
    precision = last_of(finished / "retrieval").state["precision"]
    for _ in range(10):
        step = stop_after("step-00000050", run)
        (partial,) = run.glob("retrieval.partial-*")
        if last_of(partial).state["precision"] == precision:
            return step
        shutil.rmtree(partial)
    raise AssertionError(f"no run of ten made its products as {precision}")


def trained(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "retrieval/metrics.json").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_neither_a_stop_nor_a_killed_rank_changes_the_result(
    finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run / "data", run / "data")
    shutil.copy(finished_run / "config.yaml", run)
    step = stop_one_like(finished_run, run)
    assert list(run.glob(f"retrieval.partial-*/checkpoints/step-{step:08d}"))
    kill_a_rank_after("step-00000100", run)
    whole, resumed = trained(finished_run), trained(run)
    assert (whole["train"]["resumed_at_step"], whole["train"]["restarts"]) == (0, 0)
    assert resumed["train"]["resumed_at_step"] >= 100
    assert resumed["train"]["restarts"] == 1
    # As many ranks: not near, but the same bits of every weight and optimizer's state.
    comparison = compare(
        last_of(finished_run / "retrieval"), last_of(run / "retrieval")
    )
    assert not (comparison.differ or comparison.only_first or comparison.only_second), (
        comparison
    )
    assert whole["train"]["last_step_loss"] == resumed["train"]["last_step_loss"]
    assert whole["test"] == resumed["test"]
    (epoch,) = audit_stage(run / "retrieval")
    assert epoch.is_whole and epoch.rows == 150 * 128


def test_a_finished_stage_is_not_trained_again(finished_run: Path) -> None:
    done = on_ranks(2, *TRAIN, finished_run)
    assert done.returncode == 0
    assert "skipped, its inputs have not changed" in done.stdout
