"""The folder of a run: its settings, and whether a stage has anything to do in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from torchrec_adrec import stages
from torchrec_adrec.config import Config, load_config
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.ranks import Alone, Ranks
from torchrec_adrec.stage_folder import at_work, make_run

if TYPE_CHECKING:
    from torchrec_adrec.distributed.process import Process


def read_settings(
    config: Path | None, overrides: list[str] | None, out: Path
) -> Config:
    """Read the settings: the named file, else what the run already has."""
    saved = out / stages.CONFIG
    if config is None and saved.exists():
        config = saved
    settings = load_config(config, overrides or [])
    if settings.data.adapter != "synthetic" and not settings.data.raw:
        raise ConfigError("data.raw is empty; name the raw files: data.raw=PATH")
    return settings


def keep(settings: Config, out: Path) -> None:
    """Make the run's folder and write its settings; of several ranks only the first."""
    if os.environ.get("RANK", "0") == "0":
        make_run(out)
        partial = out / f"{stages.CONFIG}.partial"
        settings.save(partial)
        partial.rename(out / stages.CONFIG)


def starts(stage: stages.Stage, settings: Config, out: Path) -> bool:
    """Check the inputs, then keep the settings; False if there is nothing to do."""
    if stage.ranks == "one" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"`adrec {' '.join(stage.command)}` runs in one process; start it without"
            " the launcher"
        )
    stages.require(stage, settings, out)
    keep(settings, out)
    if stages.is_done(stage, settings, out):
        typer.echo(
            f"{stage.name}: skipped, its inputs have not changed; remove"
            f" {out / stage.name} to do it again"
        )
        return False
    return True


@contextmanager
def on_all_ranks(
    stage: stages.Stage, config: Config, out: Path
) -> Iterator[tuple["Process", Path] | None]:
    """The process group and the stage's folder, or None if there is nothing to do."""
    from torchrec_adrec.distributed.process import process_group

    if not starts(stage, config, out):
        yield None
        return
    with (
        process_group(config.device) as process,
        at_work(stage, config, out, process) as folder,
    ):
        yield process, folder


@contextmanager
def ranks_of_launcher() -> Iterator[Ranks]:
    """The ranks that a launcher started, or this process alone, without torch."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Alone()
        return
    from torchrec_adrec.distributed.process import process_group

    # Ranks wait for the one with the most rows: hours, of a terabyte.
    with process_group("cpu", timeout=timedelta(days=7)) as process:
        yield process
