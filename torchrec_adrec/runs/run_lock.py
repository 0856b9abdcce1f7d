"""One command at a time works in a run's folder, with the settings of its launch.

There are two locks, because `adrec run` works through processes of its own that outlive
it if it is killed. A command holds `RUN/.lock` from before it writes anything until it
ends, and the process that works on a stage holds `RUN/.lock-stage`. The system frees a
lock when its process ends, even by SIGKILL, so no lock is ever left behind.

The text of `.lock` names the job that holds it, and its settings. Stages that `adrec
run` launched, and ranks that a launcher started again, read their settings there: by
then another command may have changed config.yaml.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any
from uuid import uuid4

from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import BusyError, ConfigError
from torchrec_adrec.runs.unpack import check_no_bundle

LOCK, STAGE_LOCK = ".lock", ".lock-stage"
COMMAND_WIDTH = 60  # characters of another command that a message shows
JOB = "ADREC_JOB"  # environment: the `adrec run` that launched this process


@dataclass(frozen=True)
class Job:
    """Names the command that works in a run.

    Attributes:
        name: the same in all processes of a command, and after a restart of its ranks.
        goes_on: whether an earlier process of it holds the settings in `.lock`.
        is_launched: whether an `adrec run` holds `.lock` for it.
    """

    name: str
    goes_on: bool
    is_launched: bool

    @classmethod
    def of_process(cls) -> "Job":
        """Return the job that this process belongs to, by what launched it."""
        if JOB in os.environ:
            return cls(os.environ[JOB], goes_on=True, is_launched=True)
        name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if name == "none":  # a launcher that was given no name
            return cls.new()
        # Every attempt of a launcher has the same name: only the first one may write
        # settings, and the later ones go on with them.
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return cls(name, goes_on=again, is_launched=False)

    @classmethod
    def new(cls) -> "Job":
        """Return the job of a command that a user typed."""
        return cls(uuid4().hex, goes_on=False, is_launched=False)


@contextmanager
def hold(run: Path, job: Job) -> Iterator[None]:
    """Hold the run as the process that works on a stage.

    Args:
        run: the run's folder.
        job: if an `adrec run` launched it, that one holds the run for it, and it
            only holds the stage.

    Raises:
        BusyError: another command is at work in the run.
        ConfigError: it is a bundle.
    """
    if job.is_launched:
        with _locked(run / STAGE_LOCK, run):
            yield
        return
    with _locked(run / LOCK, run), _locked(run / STAGE_LOCK, run):
        if not job.goes_on:
            # The text still names the command before, and a rank of that one which is
            # started again must not take this run for its own.
            (run / LOCK).write_text("")
        yield


@contextmanager
def hold_for_stages(run: Path, job: Job) -> Iterator[None]:
    """Hold the run as the command that launches its stages.

    Raises:
        BusyError: another command is at work, or a stage of one that was killed.
        ConfigError: the run is a bundle.
    """
    with _locked(run / LOCK, run):
        # Taken only to see that nobody has it: a stage may go on after its `adrec run`
        # was killed. From then on it belongs to the stages that this command launches.
        with _locked(run / STAGE_LOCK, run):
            (run / LOCK).write_text("")
        yield


@contextmanager
def _locked(path: Path, run: Path) -> Iterator[None]:
    check_no_bundle(run)  # in which the lock itself would be a file too many
    with path.open("a") as lock:
        try:
            # Of this open file, not of the path: it goes when the process does.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another command is at work in {run}{_holder_named(run)}; wait for"
                " its end, or choose another --out"
            ) from None
        yield


def _holder_named(run: Path) -> str:
    record = _read_lock(run)
    if not record:  # it has just begun
        return ""
    args = shorten(record["command"], COMMAND_WIDTH, placeholder=" ...")
    return f": `adrec {args}`, process {record['process']}"


def write_settings(run: Path, job: Job, settings: Config) -> None:
    """Write into the lock, as its holder, whose it is and with which settings."""
    record = {
        "job": job.name,
        "command": " ".join(sys.argv[1:]),
        "process": os.getpid(),
        "settings": settings.model_dump(mode="json"),
    }
    (run / LOCK).write_text(json.dumps(record) + "\n")


def holder(run: Path) -> str:
    """Return the name of the job that holds the run."""
    return str(_read_lock(run)["job"])


def launched_with(run: Path, job: Job) -> Config | None:
    """Return the settings of the job that this process continues; None if it is new.

    Raises:
        ConfigError: another command has been at work in the run since it was launched.
    """
    if not job.goes_on:
        return None
    record = _read_lock(run)
    if record.get("job") != job.name:
        raise ConfigError(
            f"another command has been at work in {run} since this one was launched"
            f" ({run / LOCK}); it would go on with other settings. Launch it again"
        )
    return Config.model_validate(record["settings"])


def _read_lock(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / LOCK).read_text()))
    except (OSError, ValueError):
        return {}
