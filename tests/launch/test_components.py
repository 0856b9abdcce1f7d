"""The component is one that torchx takes, and `adrec run` launches by it."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from torchrec_adrec.pipeline.display import RUN_LOG
from torchrec_adrec.pipeline.pipeline import COMPONENTS


@pytest.mark.parametrize("scheduler", ["local_cwd", "slurm"])
def test_restarts_and_grace_reach_torchrun(scheduler: str) -> None:
    torchx = str(Path(sys.executable).with_name("torchx"))
    options = ["-j", "2x8", "--max_restarts", "5", "--grace_seconds", "77"]
    args = [torchx, "run", "--dryrun", "-s", scheduler, f"{COMPONENTS}:ddp", *options]
    args += ["--", "train", "retrieval", "--out", "runs/x", "train.epochs=2"]
    done = subprocess.run(args, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    line = " ".join(done.stdout.replace("'", "").replace('"', "").split())
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in line
    for part in (
        f"PATH={Path(sys.executable).parent}:",
        "torchrec_adrec.launch.agent --max_restarts 5 --shutdown_timeout 77",
        "--nnodes 2 --nproc_per_node 8",
        "-m torchrec_adrec train retrieval --out runs/x train.epochs=2",
    ):
        assert part in line, done.stdout


def test_adrec_run_launches_by_it(finished_run: Path) -> None:
    """Stages that all ranks run share a job."""
    log = (finished_run / RUN_LOG).read_text()
    options = "launch/components.py:ddp -j 1x2 --max_restarts 3 -- "
    assert options + "job retrieval export index ranking --out" in log
    assert log.count("components.py:ddp") == 1


@pytest.mark.parametrize("folder", ["bin", "the other's bin $HOME"])
def test_torchrun_is_that_of_this_torchx(tmp_path: Path, folder: str) -> None:
    """Called by its path, from a shell whose environment is not the activated one.

    The folder of the interpreter may have any name: a shell line is made of it.
    """
    activated = tmp_path / "activated"
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    for place, word in ((tmp_path / folder, "right"), (activated, "wrong")):
        place.mkdir()
        for name in ("torchrun", "python"):
            script = place / name
            script.write_text(f'#!/bin/sh\necho {word} "$@" > "$HOME/said"\n')
            script.chmod(0o755)
    script = tmp_path / "called.py"
    script.write_text(
        f"import sys; sys.executable = {str(tmp_path / folder / 'python')!r}\n"
        "from torchx.cli.main import main; main()\n"
    )
    args = [sys.executable, str(script), "run", "-s", "local_cwd", f"{COMPONENTS}:ddp"]
    done = subprocess.run(
        [*args, "-j", "1x1", "--", "train", "retrieval"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment | {"PATH": f"{activated}:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    # Of a job this short torchx may print nothing: hence a file.
    printed = (tmp_path / "said").read_text()
    assert printed.startswith("right ") and "--max_restarts 3 " in printed
