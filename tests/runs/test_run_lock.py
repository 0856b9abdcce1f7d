"""One command at a time in a run, and each with the settings it was launched with."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY, adrec

from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import ConfigError, ManifestError
from torchrec_adrec.runs.run_folder import command_in
from torchrec_adrec.runs.run_lock import JOB, LOCK, Job, hold, hold_for_stages, holder
from torchrec_adrec.runs.stages import BASELINES, CONFIG, DATA

HOLD = """
import sys, time
from pathlib import Path
from torchrec_adrec.runs.run_lock import Job, {hold}
with {hold}(Path(sys.argv[1]), Job.new()):
    print("held", flush=True)
    time.sleep(600)
"""
RESTARTED = {"TORCHELASTIC_RUN_ID": "job-1", "TORCHELASTIC_RESTART_COUNT": "1"}


@contextmanager
def launched(run: Path, *args: str) -> Iterator[Config]:
    """The command of a stage that needs no other."""
    with command_in(run, None, ["data.adapter=synthetic", *args], DATA) as settings:
        yield settings


def contents(run: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in run.iterdir()}


@contextmanager
def another_process(run: Path, lock: str = "hold") -> Iterator["subprocess.Popen[str]"]:
    code = HOLD.format(hold=lock)
    command = [sys.executable, "-c", code, str(run)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("lock", ["hold", "hold_for_stages"])
def test_the_second_command_writes_nothing(tmp_path: Path, lock: str) -> None:
    with launched(tmp_path, "seed=1"):
        pass
    with another_process(tmp_path, lock) as process:
        before = contents(tmp_path)
        for command in (launched(tmp_path, "seed=2"), command_in(tmp_path, None, [])):
            with pytest.raises(ConfigError, match="another command"), command:
                pass
        done = adrec("prepare", "--out", tmp_path, "data.adapter=synthetic", "seed=2")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert contents(tmp_path) == before
        os.kill(process.pid, signal.SIGKILL)  # the system frees the lock
        process.wait()
        with launched(tmp_path, "seed=2") as settings:
            assert settings.seed == 2


def test_the_command_at_work_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["adrec", "run", "--out", "x"])
    with (
        command_in(tmp_path, None, ["data.adapter=synthetic"]),
        pytest.raises(ConfigError, match=f"adrec run --out x`, process {os.getpid()}"),
        launched(tmp_path),
    ):
        pass


def test_stages_of_a_run_work_under_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings of the run, whatever config.yaml says by then."""
    with command_in(tmp_path, None, ["data.adapter=synthetic", "seed=5"]):
        (tmp_path / CONFIG).write_text("seed: 6\n")
        monkeypatch.setenv(JOB, holder(tmp_path))
        with command_in(tmp_path, None, None, DATA) as settings:
            assert settings.seed == 5
            with (  # two stages of it at once
                pytest.raises(ConfigError, match="another command is at work"),
                command_in(tmp_path, None, None, DATA),
            ):
                pass
    monkeypatch.delenv(JOB)
    with launched(tmp_path, "seed=7"):
        pass
    monkeypatch.setenv(JOB, "the run that was killed")
    with (
        pytest.raises(ConfigError, match="another command has been at work"),
        command_in(tmp_path, None, None, DATA),
    ):
        pass


def test_a_stage_that_outlived_its_run_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with command_in(tmp_path, None, ["data.adapter=synthetic"]):
        monkeypatch.setenv(JOB, holder(tmp_path))
    with command_in(tmp_path, None, None, DATA):  # the lock of the run is free
        monkeypatch.delenv(JOB)
        for lock in (hold, hold_for_stages):
            with (
                pytest.raises(ConfigError, match="another command is at work"),
                lock(tmp_path, Job.new()),
            ):
                pass


def test_restarted_ranks_go_on_with_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", RESTARTED["TORCHELASTIC_RUN_ID"])
    with launched(tmp_path, "seed=5"):
        pass
    (tmp_path / CONFIG).write_text("seed: 6\n")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        with launched(tmp_path) as settings:
            assert settings.seed == 5
    for name in (*RESTARTED, "RANK"):
        monkeypatch.delenv(name)
    with launched(tmp_path, "seed=7"):  # between two attempts
        pass
    for name, value in RESTARTED.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match="another command has been at work"),
        launched(tmp_path, "seed=5"),
    ):
        pass
    with_seven = (tmp_path / CONFIG).read_text()
    assert "seed: 7" in with_seven


def test_a_refusal_makes_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(ConfigError), launched(out, "no.such=1"):
        pass
    with (
        pytest.raises(ManifestError, match="is missing"),
        command_in(out, None, ["data.adapter=synthetic"], BASELINES),
    ):
        pass
    assert not out.exists()


def test_a_launcher_does_not_retry_a_refusal(tmp_path: Path) -> None:
    agent = ("torchrec_adrec.launch.agent", "--standalone", "--nproc-per-node", "2")
    options = ("--max-restarts", "3", "-m", "torchrec_adrec")
    args = ("prepare", "--out", str(tmp_path), "data.adapter=synthetic", "seed=2")
    with another_process(tmp_path):
        before = contents(tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", *agent, *options, *args],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )
        assert contents(tmp_path) == before
    assert done.returncode == 2
    assert done.stderr.count("another command is at work") == 1
    assert "Traceback" not in done.stderr, done.stderr


def test_a_launcher_retries_a_crash(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text(
        "import os, sys\n"
        "print('attempt', os.environ['TORCHELASTIC_RESTART_COUNT'], flush=True)\n"
        "sys.exit(os.environ['TORCHELASTIC_RESTART_COUNT'] == '0')\n"
    )
    agent = ("torchrec_adrec.launch.agent", "--standalone", "--max-restarts", "1")
    done = subprocess.run(
        [sys.executable, "-m", *agent, str(script)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["attempt", "0", "attempt", "1"]


def test_the_lock_says_nothing_of_a_command_before(tmp_path: Path) -> None:
    with launched(tmp_path):
        pass
    with hold(tmp_path, Job.new()):
        assert (tmp_path / LOCK).read_text() == ""
