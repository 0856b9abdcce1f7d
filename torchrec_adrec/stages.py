"""The stages of a run: what each is made from, and how its folder becomes whole.

    RUN/
      config.yaml
      data/ baselines/ retrieval/ embeddings/ index/ ranking/   one folder a stage
      NAME.partial-<fingerprint>/                               a stage at work

A stage works in a partial folder whose name is the fingerprint of all that goes in, and
is renamed when it is done: a folder without `.partial` was written whole, a restarted
stage finds its own work again, and other settings can never resume it.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torchrec_adrec.config import Config
from torchrec_adrec.errors import ConfigError, ManifestError

RECORD = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: its folder.
        command: the words after `adrec` that run it.
        settings: the sections of the config that change what it makes.
        needs: the stages it reads.
        distributed: whether it runs on all ranks.
        resumes: whether it goes on from what it left when it was interrupted.
    """

    name: str
    command: tuple[str, ...]
    settings: tuple[str, ...]
    needs: tuple[str, ...] = ()
    distributed: bool = True
    resumes: bool = False


DATA = Stage("data", ("prepare",), ("seed", "data"), distributed=False)
BASELINES = Stage("baselines", ("baselines",), ("seed",), ("data",), distributed=False)
RETRIEVAL = Stage(
    "retrieval",
    ("train", "retrieval"),
    ("seed", "towers", "train", "sharding"),
    ("data",),
    resumes=True,
)
EMBEDDINGS = Stage("embeddings", ("export",), ("seed", "index"), ("data", "retrieval"))
INDEX = Stage("index", ("index",), ("seed", "index", "recommend"), ("embeddings",))
RANKING = Stage(
    "ranking",
    ("train", "ranking"),
    ("seed", "ranker", "train", "sharding"),
    ("data", "retrieval"),
    resumes=True,
)
STAGES = {s.name: s for s in (DATA, BASELINES, RETRIEVAL, EMBEDDINGS, INDEX, RANKING)}


class Ranks(Protocol):
    """What a stage must know of its process group."""

    @property
    def is_first(self) -> bool:
        """Whether this rank renames and records."""

    def barrier(self) -> None:
        """Wait for all ranks."""


class Alone:
    """A stage of one process."""

    is_first = True

    def barrier(self) -> None:
        """Nobody to wait for."""


def fingerprint(stage: Stage, config: Config, run: Path) -> str:
    """Sixteen hex digits of all that goes into a stage, stages before it included."""
    settings = config.model_dump(mode="json")
    made_from: dict[str, Any] = {name: settings[name] for name in stage.settings}
    made_from["needs"] = {
        name: fingerprint(STAGES[name], config, run) for name in stage.needs
    }
    if stage is DATA:
        made_from["raw"] = [_identity(Path(path)) for path in config.data.raw]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def _identity(path: Path) -> tuple[str, int, int]:
    """Name, size and time of change: reading 1 TB to hash it would take longer."""
    try:
        stat = path.stat()
    except OSError:
        raise ConfigError(f"data.raw: no such file: {path}") from None
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def is_done(stage: Stage, config: Config, run: Path) -> bool:
    """Whether the stage's folder is whole and made from just these inputs."""
    return _made_from(run / stage.name) == fingerprint(stage, config, run)


def require(stage: Stage, config: Config, run: Path) -> None:
    """Refuse to start on inputs that are missing or were made with other settings.

    Raises:
        ManifestError: names the command to run first.
    """
    for name in stage.needs:
        if not is_done(STAGES[name], config, run):
            found = _made_from(run / name)
            state = "was made with other settings" if found else "is missing"
            command = " ".join(STAGES[name].command)
            raise ManifestError(f"{run / name} {state}; run `adrec {command}` first")


@contextmanager
def at_work(
    stage: Stage, config: Config, run: Path, ranks: Ranks | None = None
) -> Iterator[Path]:
    """Give the stage its partial folder; on success record and rename it.

    What an interrupted stage left in the folder is still there if the stage resumes,
    otherwise it is removed first.
    """
    ranks = ranks or Alone()
    mark = fingerprint(stage, config, run)
    partial = run / f"{stage.name}.partial-{mark}"
    if ranks.is_first:
        if not stage.resumes:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
    ranks.barrier()
    yield partial
    ranks.barrier()
    if ranks.is_first:
        record = {"made_from": mark, "needs": list(stage.needs)}
        (partial / RECORD).write_text(json.dumps(record) + "\n")
        _publish(partial, run / stage.name)
    ranks.barrier()


def _publish(partial: Path, final: Path) -> None:
    """Put the new folder in the old one's place."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    for stale in final.parent.glob(f"{final.name}.partial-*"):
        shutil.rmtree(stale)


def _made_from(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / RECORD).read_text())["made_from"])
    except (OSError, ValueError, KeyError):
        return None


def make_run(run: Path) -> None:
    """Make the folder of a run.

    Raises:
        ConfigError: it cannot be written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe = run / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write to {run}: {error.strerror}") from None
