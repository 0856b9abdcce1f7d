"""Signals and hung ranks, on real gloo ranks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from torchrec_adrec.distributed.interrupt import Interrupt
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.distributed.watchdog import HUNG, Report, batch_hash, describe
from torchrec_adrec.errors import StoppedError

SCRIPT = """
import os, signal, subprocess, sys, time
import torch
import torch.distributed as dist
from torchrec_adrec.distributed.interrupt import Interrupt
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.distributed.watchdog import Watchdog
from torchrec_adrec.runtime.logs import setup_logging

# The launcher would wait 30 s for a stopped rank.
CLEAR = "while kill -0 {other}; do sleep 0.1; done; kill -KILL {me}"

def wait_for_the_other():
    dist.all_reduce(torch.zeros(1))

def fall_asleep():
    time.sleep(60)

setup_logging()
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
if attempt == "1" and os.environ["RANK"] == "0":
    time.sleep(2)  # the other must wait for its address, not find the old one
with process_group("cpu") as process:
    first = process.is_first
    if attempt == "0":
        with Interrupt() as interrupt:
            assert interrupt.agree(process.device) == 0
            if not first:  # one rank alone sees it, and both agree
                os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.requested != first
            agreed = interrupt.agree(process.device)
            print(f"agreed {agreed};\\n", end="", flush=True)  # one write, or they mix
    pids = [None, None]
    dist.all_gather_object(pids, os.getpid())
    with Watchdog(process, hang_seconds=3, every=0.2) as watchdog:
        for step in range(1, 6):
            watchdog.heartbeat(step, [torch.full((4,), step + process.rank)])
            wait_for_the_other()
        with watchdog.paused():
            time.sleep(4)
        print("still here", flush=True)
        watchdog.heartbeat(6)
        if first:
            watchdog.heartbeat(7, [torch.arange(4)])
            wait_for_the_other()
        elif attempt == "0":
            clear = CLEAR.format(me=pids[1], other=pids[0])
            quiet = {"stderr": subprocess.DEVNULL, "start_new_session": True}
            subprocess.Popen(["sh", "-c", clear], **quiet)
            os.kill(os.getpid(), signal.SIGSTOP)  # before it meets the other
        else:
            fall_asleep()
"""


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What two ranks say: first rank 1 is stopped, after the restart it sleeps."""
    path = tmp_path_factory.mktemp("ranks") / "script.py"
    path.write_text(SCRIPT)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "--max-restarts", "1", str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode != 0, done.stdout
    assert f"exitcode  : {HUNG}" in done.stderr
    return done.stdout, done.stderr


def test_one_rank_is_asked_and_all_agree(failures: tuple[str, str]) -> None:
    assert failures[0].count("agreed 15") == 2


def test_a_pause_is_no_hang(failures: tuple[str, str]) -> None:
    assert failures[0].count("still here") == 4


def test_a_stopped_rank_is_named(failures: tuple[str, str]) -> None:
    lines = [line for line in failures[1].splitlines() if "rank 0/2" in line]
    stopped = next(i for i, x in enumerate(lines) if "do not answer at all: [1]" in x)
    assert "no step for 3 s (train.hang_seconds)" in lines[stopped]
    first, second = lines[stopped + 1 : stopped + 3]
    assert f"rank 0: step 7, batch {batch_hash([torch.arange(4)])}" in first
    assert "all_reduce" in first and "DOES NOT ANSWER" not in first
    assert "rank 1: step" in second and second.endswith("DOES NOT ANSWER since")


def test_a_sleeping_rank_is_named_with_its_place(failures: tuple[str, str]) -> None:
    lines = failures[1].splitlines()
    behind = next(i for i, x in enumerate(lines) if "ranks that are behind: [1]" in x)
    places = "\n".join(lines[behind:])
    assert "rank 0/2" in lines[behind]  # one rank speaks
    assert failures[1].count("ranks that are behind") == 1
    assert "fall_asleep" in places and "rank 1: step 6" in places


def test_equal_steps_are_told_by_their_places() -> None:
    reports: dict[int, Report | None] = {
        rank: Report(3, 9, "00", 400, place) for rank, place in enumerate("ab")
    }
    first, *lines = describe(reports, set(), 300)
    assert "all ranks are at step 9" in first
    assert [line[-1] for line in lines] == ["a", "b"]


def test_batch_hash_tells_batches_apart() -> None:
    ids, labels = torch.arange(8), torch.zeros(8)
    hashes = {
        batch_hash([ids, labels]),
        batch_hash([ids.flip(0), labels]),
        batch_hash([ids, labels + 1]),
    }
    assert len(hashes) == 3
    assert batch_hash([ids, labels]) == batch_hash([ids.clone(), labels.clone()])


def test_a_signal_that_came_too_late_still_ends_the_process() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.requested and not came
        assert came == [signal.SIGTERM]
        with process_group("cpu") as process, Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.agree(process.device) == signal.SIGTERM
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_exit_code_is_the_shells() -> None:
    assert StoppedError(signal.SIGTERM, 7).code == 143
    assert StoppedError(signal.SIGINT, 7).code == 130


def test_adrec_run_passes_a_signal_on(tmp_path: Path) -> None:
    """To the launcher of the stage, which lets it save, and waits for it."""
    code = """
import subprocess, sys
from torchrec_adrec.pipeline.pipeline import _wait
stage = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7));"
stage += "print('ready', flush=True); time.sleep(60)"
code, stop = _wait(subprocess.Popen([sys.executable, "-c", stage]))
sys.exit(code if stop == 15 else 1)
"""
    job = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    job.terminate()
    assert job.wait(60) == 7
