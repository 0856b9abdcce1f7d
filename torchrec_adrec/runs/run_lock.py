"""One command at a time in a run's folder, with the settings it was launched with.

`RUN/.lock` is held by a command from before it writes anything to its end, and
`RUN/.lock-stage` by the process that works on a stage: the stages of `adrec run` are
processes of their own, and outlive it if it is killed. The system frees a lock when its
process ends, however.

The text of `.lock` says which job holds it, and its settings. Stages that `adrec run`
launched, and ranks that a launcher started again, go on with these, whatever
config.yaml says by then.
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
from torchrec_adrec.errors import ConfigError

LOCK, STAGE_LOCK = ".lock", ".lock-stage"
SHOWN = 60  # characters of another command
JOB = "ADREC_JOB"  # environment: the `adrec run` that launched this process


@dataclass(frozen=True)
class Job:
    """Who works in a run.

    Attributes:
        name: the same in all processes of a command, and after a restart of its ranks.
        goes_on: whether an earlier process of it holds the settings in `.lock`.
        is_launched: whether an `adrec run` holds `.lock` for it.
    """

    name: str
    goes_on: bool
    is_launched: bool

    @classmethod
    def here(cls) -> "Job":
        """The job that this process belongs to, by what launched it."""
        if JOB in os.environ:
            return cls(os.environ[JOB], goes_on=True, is_launched=True)
        name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if name == "none":  # a launcher that was given no name
            return cls.new()
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return cls(name, goes_on=again, is_launched=False)

    @classmethod
    def new(cls) -> "Job":
        """A command that nothing launched."""
        return cls(uuid4().hex, goes_on=False, is_launched=False)


@contextmanager
def hold(run: Path, job: Job) -> Iterator[None]:
    """Be the only command at work in the run.

    Raises:
        ConfigError: another one is.
    """
    if job.is_launched:
        with _locked(run / STAGE_LOCK, run):
            yield
        return
    with _locked(run / LOCK, run), _locked(run / STAGE_LOCK, run):
        if not job.goes_on:
            (run / LOCK).write_text("")  # not to be taken for the one before
        yield


@contextmanager
def hold_for_stages(run: Path, job: Job) -> Iterator[None]:
    """Be the only command at work in the run, whose stages other processes do.

    Raises:
        ConfigError: another one is, or a stage of one that was killed.
    """
    with _locked(run / LOCK, run):
        with _locked(run / STAGE_LOCK, run):
            (run / LOCK).write_text("")
        yield


@contextmanager
def _locked(path: Path, run: Path) -> Iterator[None]:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another command is at work in {run}{_who(run)}; wait for its end, or"
                " choose another --out"
            ) from None
        yield


def _who(run: Path) -> str:
    text = _text(run)
    if not text:  # it has just begun
        return ""
    words = shorten(text["command"], SHOWN, placeholder=" ...")
    return f": `adrec {words}`, process {text['process']}"


def write_settings(run: Path, job: Job, settings: Config) -> None:
    """Say whose the lock is; by its holder."""
    text = {
        "job": job.name,
        "command": " ".join(sys.argv[1:]),
        "process": os.getpid(),
        "settings": settings.model_dump(mode="json"),
    }
    (run / LOCK).write_text(json.dumps(text) + "\n")


def holder(run: Path) -> str:
    """The name of the job that holds the run."""
    return str(_text(run)["job"])


def launched_with(run: Path, job: Job) -> Config | None:
    """The settings of the job that this process goes on with; None if it is new.

    Raises:
        ConfigError: another command has been at work in the run since it was launched.
    """
    if not job.goes_on:
        return None
    text = _text(run)
    if text.get("job") != job.name:
        raise ConfigError(
            f"another command has been at work in {run} since this one was launched"
            f" ({run / LOCK}); it would go on with other settings. Launch it again"
        )
    return Config.model_validate(text["settings"])


def _text(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / LOCK).read_text()))
    except (OSError, ValueError):
        return {}
