"""A command opens the folder of a run, with its settings, and asks what is to do."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import typer

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.config.unused import without_effect
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runs import stages
from torchrec_adrec.runs.run_lock import (
    Job,
    hold,
    hold_for_stages,
    launched_with,
    write_settings,
)
from torchrec_adrec.runs.stage_folder import check_place, make_run
from torchrec_adrec.runtime.disk import disk_errors
from torchrec_adrec.runtime.files import put
from torchrec_adrec.runtime.ranks import Ranks, SingleProcess

log = logging.getLogger(__name__)


def read_settings(
    config: Path | None, overrides: list[str] | None, out: Path
) -> Config:
    """Read the settings from the named file, or else those that the run already has.

    Args:
        config: YAML file, if one was named.
        overrides: `KEY=VALUE` of the command line.
        out: the run's folder.

    Raises:
        ConfigError: they cannot be read or used.
    """
    saved = out / stages.CONFIG
    if config is None and saved.exists():
        config = saved
    settings = load_config(config, overrides or [])
    # Imported here, because polars would slow down `--help`.
    from torchrec_adrec.data.adapters import check_source

    check_source(settings.data)
    return settings


@contextmanager
def command_in(
    out: Path,
    config: Path | None,
    overrides: list[str] | None,
    stage: stages.Stage | None = None,
) -> Iterator[Config]:
    """Hold the run's folder and yield the settings that the command was launched with.

    Of several ranks the first holds it for all. Nothing is written before it is held,
    and no folder is made for settings or inputs that are refused.

    Args:
        out: the run's folder.
        config: YAML file of settings, if one was named.
        overrides: `KEY=VALUE` of the command line.
        stage: the first that the command works on; None: it launches the stages.

    Raises:
        ConfigError: another command is at work, or the settings cannot be used.
        ManifestError: an input is missing or was made with other settings.
        DiskError: the disk is full, or may not be written.
    """
    job = Job.of_process() if stage is not None else Job.new()
    is_first = os.environ.get("RANK", "0") == "0"
    if not out.exists():
        # Read once before there is a folder: a misspelt setting leaves none behind.
        _settings(job, config, overrides, out, stage)
    with disk_errors(out):
        if is_first:
            make_run(out)
        holder = hold if stage is not None else hold_for_stages
        with holder(out, job) if is_first else nullcontext():
            # Read under the lock: until it was ours, config.yaml could change.
            settings = _settings(job, config, overrides, out, stage)
            if is_first and not job.goes_on:
                write_settings(out, job, settings)
                _save_config(settings, out)
                for line in without_effect(settings):
                    log.warning("%s", line)
            yield settings


def _settings(
    job: Job,
    config: Path | None,
    overrides: list[str] | None,
    out: Path,
    stage: stages.Stage | None,
) -> Config:
    settings = launched_with(out, job) or read_settings(config, overrides, out)
    if stage is None:
        return settings
    if stage.ranks == "one" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"`adrec {' '.join(stage.command)}` runs in one process; start it without"
            " the launcher"
        )
    stages.require(stage, settings, out)
    return settings


def _save_config(settings: Config, out: Path) -> None:
    # By renaming, so that a reader finds the old file or the new one and never half.
    partial = out / f"{stages.CONFIG}.partial"
    settings.save(partial)
    put(partial, out / stages.CONFIG)


def should_run(
    stage: stages.Stage, settings: Config, out: Path, again: bool = False
) -> bool:
    """Return whether the stage has to be made; check its inputs and its place.

    Args:
        stage: the stage.
        settings: of the run.
        out: the run's folder.
        again: it is made in any case.

    Raises:
        ManifestError: an input is missing or was made with other settings.
        ConfigError: something is in the way of the stage's folder.
    """
    stages.require(stage, settings, out)
    if not again and stages.is_done(stage, settings, out):
        typer.echo(
            f"{stage.name}: skipped, its inputs have not changed; remove"
            f" {out / stage.name} to do it again"
        )
        return False
    check_place(stage, out)
    return True


@contextmanager
def ranks_of_launcher() -> Iterator[Ranks]:
    """Yield the ranks that a launcher started, or this process alone, without torch."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SingleProcess()
        return
    from torchrec_adrec.distributed.process import process_group

    with process_group("cpu") as process:
        yield process
