"""A run that was killed and started again ends as one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, on_ranks

TRAIN = ("train", "retrieval")


def start(run: Path) -> subprocess.Popen[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "torchrec_adrec", *TRAIN, "--out", run],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def kill_one_rank_after(checkpoint: str, run: Path) -> None:
    """Start training, wait for a checkpoint, kill -9 the second rank."""
    job = start(run)
    deadline = time.monotonic() + 120
    while not list(run.glob(f"retrieval.partial-*/checkpoints/{checkpoint}")):
        assert job.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    os.kill(children(job.pid)[-1], signal.SIGKILL)
    assert job.wait(60) != 0
    assert not (run / "retrieval").exists()


def trained(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "retrieval/metrics.json").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_a_killed_rank_does_not_change_the_result(
    finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run / "data", run / "data")
    shutil.copy(finished_run / "config.yaml", run)
    kill_one_rank_after("step-00000050", run)
    done = on_ranks(2, *TRAIN, "--out", run)
    assert done.returncode == 0, done.stderr
    whole, resumed = trained(finished_run), trained(run)
    assert whole["train"]["resumed_at_step"] == 0
    assert resumed["train"]["resumed_at_step"] >= 50
    for path in (("train", "last_step_loss"), ("test", "click", "log_loss")):
        values = []
        for found in (whole, resumed):
            value: Any = found
            for key in path:
                value = value[key]
            values.append(value)
        assert values[1] == pytest.approx(values[0], abs=1e-5), path


def test_a_finished_stage_is_not_trained_again(finished_run: Path) -> None:
    done = on_ranks(2, *TRAIN, "--out", finished_run)
    assert done.returncode == 0
    assert "skipped, its inputs have not changed" in done.stdout
