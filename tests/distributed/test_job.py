"""Stages in one job end as in jobs of their own, and resume where they were."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, adrec
from test_resume import ranks_below

from torchrec_adrec.distributed import checkpoint_files
from torchrec_adrec.distributed.process import restarts_of, unchanged_process
from torchrec_adrec.index.manifest import load_vectors
from torchrec_adrec.runs.stages import stage_folder
from torchrec_adrec.runtime.files import sha256

NAMES = ("retrieval", "export", "index", "ranking")
SCRIPT = """
import weakref
from pathlib import Path
from torchrec_adrec.config.run import load_config
from torchrec_adrec.pipeline.job import run_stages
from torchrec_adrec.runs.stages import STAGES
from torchrec_adrec.tasks import sharded
from torchrec_adrec.training import trainer
from torchrec_adrec.training.precision import MatmulPrecision

built = []
build = sharded.build

def watched(*args):
    assert all(model() is None for model in built), "the model before is in memory"
    sharded_task = build(*args)
    built.append(weakref.ref(sharded_task.model))
    return sharded_task

sharded.build = trainer.build = watched
# Chosen by the clock, it could be another one in another launch.
trainer.choose_precision = lambda requested, device: MatmulPrecision("medium", False)
run = Path({run!r})
overrides = ["train.batch_size=512", "train.epochs=1"]
settings = load_config(run / "config.yaml", overrides)
run_stages([STAGES[name] for name in {names!r}], settings, run)
"""
RanksScript = Callable[[int, str], "subprocess.CompletedProcess[str]"]


def begin(finished_run: Path, run: Path, *done: str) -> Path:
    """A run in which some stages are finished."""
    run.mkdir()
    shutil.copy(finished_run / "config.yaml", run)
    for name in ("data", "baselines", *done):
        shutil.copytree(finished_run / name, run / name)
    return run


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    last = checkpoint_files.latest(run / stage / "checkpoints")
    assert last is not None
    return dict(checkpoint_files.tensors(last))


def figures(run: Path, stage: str) -> Any:
    metrics = json.loads((stage_folder(run, stage) / "metrics.json").read_text())
    if "train" in metrics:
        del metrics["train"]["samples_per_second"]
    return metrics


@pytest.mark.slow
def test_one_job_writes_what_separate_jobs_write(
    finished_run: Path, tmp_path: Path, ranks_script: RanksScript
) -> None:
    """Bit for bit: nothing that a stage sets in its process reaches the next."""
    one, apart = (begin(finished_run, tmp_path / name) for name in ("one", "apart"))
    launches = [(one, NAMES), *((apart, (name,)) for name in NAMES)]
    for run, names in launches:
        done = ranks_script(2, SCRIPT.format(run=str(run), names=names))
        assert done.returncode == 0, done.stderr
    for stage in NAMES:
        assert figures(one, stage) == figures(apart, stage), stage
    for stage in ("retrieval", "ranking"):
        first, second = weights(one, stage), weights(apart, stage)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name
    (ids, vectors), (expected_ids, expected) = (
        load_vectors(run / "export") for run in (one, apart)
    )
    assert np.array_equal(ids, expected_ids)
    assert np.array_equal(vectors, expected)
    versions = [stage_folder(run, "index") for run in (one, apart)]
    shards = list(versions[0].glob("shard-*"))
    assert shards
    for shard in shards:
        assert sha256(shard) == sha256(versions[1] / shard.name)


def test_a_stage_leaves_the_process_as_it_was() -> None:
    def state() -> tuple[Any, ...]:
        numpy = np.random.get_state()
        return (
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy],
            random.getstate(),
            sys.getswitchinterval(),
        )

    torch.set_float32_matmul_precision("highest")  # whatever ran here before
    before = state()
    with unchanged_process(torch.device("cpu")):
        torch.set_float32_matmul_precision("medium")
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.manual_seed(before[2][0] + 1)
        np.random.random()
        random.random()
        sys.setswitchinterval(0.1)
        inside = state()
        assert not any(one == two for one, two in zip(before, inside, strict=True))
    assert state() == before


def test_restarts_are_those_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()

    def attempt(job: str, number: int, folder: Path) -> int:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        return restarts_of(folder)

    assert [attempt("a", number, first) for number in (0, 1, 2)] == [0, 1, 2]
    assert [attempt("a", number, second) for number in (2, 3)] == [0, 1]
    assert attempt("b", 0, second) == 0  # launched anew, by hand


def start_job(run: Path) -> "subprocess.Popen[str]":
    agent = ("torchrec_adrec.launch.agent", "--standalone", "--nproc-per-node", "2")
    options = ("--max-restarts", "2", "--shutdown-timeout", "120", "-m")
    args = ("torchrec_adrec", "job", *NAMES, "--out", str(run))
    return subprocess.Popen(
        [sys.executable, "-m", *agent, *options, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
    )


def wait_for(step: int, run: Path, job: "subprocess.Popen[str]") -> None:
    """For a checkpoint of the ranker."""
    name = f"ranking.partial-*/checkpoints/step-{step:08d}"
    deadline = time.monotonic() + 300
    while not list(run.glob(name)):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_a_job_goes_on_in_the_stage_where_it_was(
    finished_run: Path, tmp_path: Path
) -> None:
    run = begin(finished_run, tmp_path / "run", "retrieval")
    job = start_job(run)
    wait_for(50, run, job)
    record = (run / "export/stage.json").read_text()
    job.terminate()
    said, _ = job.communicate(timeout=200)
    assert job.returncode != 0
    assert said.count("saved; the same command goes on") == 2, said
    job = start_job(run)
    wait_for(100, run, job)
    os.kill(sorted(ranks_below(job.pid))[-1], signal.SIGKILL)
    said, _ = job.communicate(timeout=400)
    assert job.returncode == 0, said
    for name in ("retrieval", "export", "index"):
        assert said.count(f"{name}: skipped") == 4  # two ranks, two attempts
    assert (run / "export/stage.json").read_text() == record
    trained = json.loads((run / "ranking/metrics.json").read_text())["train"]
    assert trained["resumed_at_step"] >= 100 and trained["restarts"] == 1


def test_the_stage_of_a_job_that_failed_is_named(
    finished_run: Path, tmp_path: Path
) -> None:
    run = begin(finished_run, tmp_path / "run", "retrieval", "export")
    part = run / "export/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    done = adrec("run", "--out", run, "-j", "1x1")
    assert done.returncode == 2
    assert "-- job index ranking --out" in (run / "run.log").read_text()
    assert "error: stage index failed with exit code 1" in done.stderr
    assert (done.stderr + done.stdout).count("expected sha256") == 1  # nothing retries
    assert not (run / "index").exists() and not (run / "ranking").exists()
