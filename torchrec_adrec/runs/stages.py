"""Stages of a run: what each is made from, and when it may be skipped or used.

RUN/
  config.yaml                       the settings, kept in every stage's folder too
  data/ baselines/ retrieval/ export/ index/ ranking/   one folder a stage
  index/versions/NAME/              the index keeps its last versions (`versions.py`)
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from torchrec_adrec import __version__
from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import ConfigError, ManifestError, reason
from torchrec_adrec.runs.versions import version_folder
from torchrec_adrec.runtime.files import HASHES

RECORD = "stage.json"
CONFIG = "config.yaml"
# Settings of training that change how it is watched and not what it makes: a run whose
# log_every was changed must not be trained again.
SETTINGS_WITHOUT_EFFECT = {
    "eval_batch_size",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "health_every",
    "dead_model",
    "segment",
    "restarts",
    "hang_seconds",
    "ledger",
}
WITHOUT_EFFECT = {
    "train": SETTINGS_WITHOUT_EFFECT,
    "index": {"keep_versions", "max_changed"},
    "evaluation": {
        "funnel_users",
        "funnel_depth",
        "logged_rows",
        "min_effective_rows",
    },
}


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: of the stage and of its folder.
        command: what is typed after `adrec` to run it.
        settings: the sections of the config that change what it makes.
        needs: the stages it reads.
        ranks: how many processes may run it: `one`, `all` that there are, or `any`
            number, but one unless it is launched on its own.
        resumes: whether it goes on from what it left when it was interrupted.
        versions: whether the builds before stay in its folder, to go back to.
    """

    name: str
    command: tuple[str, ...]
    settings: tuple[str, ...]
    needs: tuple[str, ...] = ()
    ranks: Literal["one", "any", "all"] = "all"
    resumes: bool = False
    versions: bool = False


DATA = Stage("data", ("prepare",), ("seed", "data"), ranks="any")
BASELINES = Stage("baselines", ("baselines",), ("seed",), ("data",), ranks="one")
RETRIEVAL = Stage(
    "retrieval",
    ("train", "retrieval"),
    ("seed", "retrieval", "train", "sharding"),
    ("data",),
    resumes=True,
)
EXPORT = Stage(
    "export",
    ("export",),
    ("seed", "export", "evaluation"),
    ("data", "retrieval"),
    resumes=True,
)
INDEX = Stage(
    "index",
    ("index",),
    ("seed", "index", "recommend"),
    ("data", "export"),
    versions=True,
)
RANKING = Stage(
    "ranking",
    ("train", "ranking"),
    ("seed", "ranking", "train", "sharding"),
    ("data", "retrieval"),
    resumes=True,
)
STAGES = {s.name: s for s in (DATA, BASELINES, RETRIEVAL, EXPORT, INDEX, RANKING)}


class Record(BaseModel):
    """Tells, in `stage.json`, what a finished stage was made from.

    Attributes:
        build_id: random, new for each build. The same inputs need not give the same
            bits (another number of ranks sums in another order), so the stages that
            read this one remember this very build.
        input_fingerprint: fingerprint of all that went in.
        settings: fingerprint of its settings alone.
        needs: `build_id` of each stage that it read.
        raw: path -> size and time of change of each raw file.
        config: sha256 of the `config.yaml` beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    build_id: str
    input_fingerprint: str
    settings: str
    needs: dict[str, str]
    raw: dict[str, tuple[int, int]]
    config: str = ""


def stage_folder(run: Path, name: str) -> Path:
    """Return where the files of a finished stage are: of its current version, if any.

    Raises:
        ManifestError: nothing says which version is current.
    """
    folder = run / name
    return version_folder(folder) if STAGES[name].versions else folder


def record_of(folder: Path) -> Record | None:
    """Read the record of a finished stage; None where there is none."""
    try:
        return Record.model_validate_json((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None


def _current_record(run: Path, name: str) -> Record | None:
    try:
        return record_of(stage_folder(run, name))
    except ManifestError:  # it is made again, which repairs that too
        return None


def describe(stage: Stage, config: Config, run: Path) -> Record:
    """Return the record that the stage would have if it were made now.

    Raises:
        ConfigError: a raw file is missing and was never prepared.
        ManifestError: a stage that it needs is missing.
    """
    # The builds that were read: their settings give other vectors on other ranks.
    needs = {name: load_record(run, name).build_id for name in stage.needs}
    raw = _raw_files(config, record_of(run / DATA.name)) if stage is DATA else {}
    settings = _settings(stage, config)
    return Record(
        build_id=uuid4().hex[:16],
        input_fingerprint=_digest([__version__, settings, needs, raw]),
        settings=settings,
        needs=needs,
        raw=raw,
    )


def _settings(stage: Stage, config: Config) -> str:
    dump = config.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    if stage is DATA and config.data.seed is not None:
        del dump["seed"]  # it does not draw the rows
    if "retrieval" in stage.settings:
        towers, teacher = dump["retrieval"], dump["retrieval"]["teacher"] or {}
        paths = [(towers, "init_from"), (towers, "start_from"), (teacher, "vectors")]
        for block, name in [*paths, (towers["mined"], "checkpoint")]:
            if block.get(name):
                # The path is no identity: by now it may hold other weights or vectors.
                hashes = Path(block[name]) / HASHES
                block[name] = hashes.read_text() if hashes.exists() else "missing"
    return _digest([dump[name] for name in stage.settings if name in dump])


def _raw_files(config: Config, before: Record | None) -> dict[str, tuple[int, int]]:
    """Return path -> size and time of change; to hash 1 TB would take too long.

    If a file is gone, all of them count as they were when they were prepared: a machine
    that trains need not hold the raw data.
    """
    from torchrec_adrec.data.adapters import files_read

    try:
        paths = [path.resolve() for path in files_read(config.data)]
    except ConfigError:
        if before is None:
            raise
        return before.raw
    stats = {str(path): path.stat() for path in paths if path.exists()}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def is_done(stage: Stage, config: Config, run: Path) -> bool:
    """Return whether the stage's folder is whole and was made from these inputs."""
    record = _current_record(run, stage.name)
    if record is None or not all(
        is_done(STAGES[name], config, run) for name in stage.needs
    ):
        return False
    return record.input_fingerprint == describe(stage, config, run).input_fingerprint


def require(stage: Stage, config: Config, run: Path) -> None:
    """Refuse to start on inputs that are missing or do not fit the settings.

    Raises:
        ManifestError: names the command to run first.
    """
    for name in stage.needs:
        check(STAGES[name], config, run)


def check(stage: Stage, config: Config, run: Path) -> None:
    """Refuse a stage that is missing, has other settings, or was made from others.

    Raises:
        ManifestError: names the command to run.
    """
    require(stage, config, run)
    record = load_record(run, stage.name)
    # Settings before inputs: whoever gave another setting is told of that one first.
    if record.settings != _settings(stage, config):
        raise ManifestError(
            f"{run / stage.name} was made with other settings; run {_how(stage)} first,"
            " or give the settings it was made with"
        )
    if stage is DATA and record.raw != _raw_files(config, record):
        raise ManifestError(
            f"the raw files have changed since {run / stage.name} was made;"
            f" run {_how(stage)} first"
        )
    check_inputs(stage, run)


def check_inputs(stage: Stage, run: Path, version: Path | None = None) -> None:
    """Refuse a stage whose inputs were built again since it was made.

    Args:
        stage, run: the stage of a run.
        version: folder of one of its versions; None: the current one.

    Raises:
        ManifestError: names both builds.
    """
    for name, expected in load_record(run, stage.name, version).needs.items():
        actual = load_record(run, name).build_id
        if actual != expected:
            raise ManifestError(
                f"{run / stage.name} was made from {name} {expected}, but the run now"
                f" holds {name} {actual}; run {_how(stage)} again"
            )


def load_record(run: Path, name: str, version: Path | None = None) -> Record:
    """Read the record of a stage that is needed.

    Args:
        run, name: the stage of a run.
        version: folder of one of its versions; None: the current one.

    Raises:
        ManifestError: there is none, or it is damaged; names the command that makes it.
    """
    how, folder = _how(STAGES[name]), version or stage_folder(run, name)
    path = folder / RECORD
    if not path.exists():
        raise ManifestError(f"{run / name} is missing; run {how} first")
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{path} is damaged ({reason(error)}); remove {folder} and run {how}"
        ) from None


def _how(stage: Stage) -> str:
    return f"`adrec {' '.join(stage.command)}`"


def _digest(content: Any) -> str:
    # 64 bits: enough for the few stages of a run, and short in a folder's name.
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
