"""How the folder of a stage becomes whole.

A stage works in `RUN/NAME.partial-<fingerprint of all that goes in>`, which is renamed
when it is done: a folder without `.partial` was written whole, a restarted stage finds
its own work again, and other settings can never resume it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runs.run_lock import STAGE_LOCK
from torchrec_adrec.runs.stages import CONFIG, RECORD, Record, Stage, describe
from torchrec_adrec.runtime.ranks import Ranks, SingleProcess
from torchrec_adrec.runtime.status import Status, send


@contextmanager
def stage_workspace(
    stage: Stage, config: Config, run: Path, ranks: Ranks | None = None
) -> Iterator[Path]:
    """Give the stage its partial folder; on success record and rename it.

    What an interrupted stage left in the folder is still there if the stage resumes,
    otherwise it is removed first. For the command that holds the run (`run_lock.py`).

    Raises:
        ConfigError: this rank has other settings or inputs than the first one.
    """
    ranks = ranks or SingleProcess()
    record = describe(stage, config, run)
    partial = run / f"{stage.name}.partial-{record.input_fingerprint}"
    if ranks.is_first:
        if not stage.resumes:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        (run / STAGE_LOCK).write_text(record.input_fingerprint)
        send(Status("begin", stage.name))
    ranks.barrier()
    _check_same(record, stage, run, ranks)
    yield partial
    ranks.barrier()
    if ranks.is_first:
        config.save(partial / CONFIG)
        (partial / RECORD).write_text(record.model_dump_json() + "\n")
        _publish(partial, run / stage.name)
        send(Status("end", stage.name))
    ranks.barrier()


def _check_same(record: Record, stage: Stage, run: Path, ranks: Ranks) -> None:
    first = (run / STAGE_LOCK).read_text()
    if record.input_fingerprint != first:
        raise ConfigError(
            f"rank {ranks.rank} would make {stage.name} from other settings or inputs"
            f" ({record.input_fingerprint}) than rank 0 ({first}). Launch all"
            " ranks with the same words, and change nothing meanwhile"
        )


def check_place(stage: Stage, run: Path) -> None:
    """Refuse before the work a place where the stage's folder could not be put.

    Raises:
        ConfigError: what is in the way, and what to do.
    """
    final = run / stage.name
    for path in (final, _old(final), *run.glob(f"{stage.name}.partial-*")):
        if path.is_symlink():
            raise ConfigError(
                f"{path} is a symbolic link to {path.readlink()}: a stage is put in its"
                f" place by renaming, which would replace the link. Remove it; to keep"
                f" the run elsewhere, let {run} itself be the link"
            )
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: expected a folder, found a file; remove it")


def _old(final: Path) -> Path:
    return final.with_name(final.name + ".old")


def _publish(partial: Path, final: Path) -> None:
    """Put the new folder in the old one's place."""
    old = _old(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    for stale in final.parent.glob(f"{final.name}.partial-*"):
        shutil.rmtree(stale)


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
