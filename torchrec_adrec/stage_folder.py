"""How the folder of a stage becomes whole.

A stage works in `RUN/NAME.partial-<fingerprint of all that goes in>`, which is renamed
when it is done: a folder without `.partial` was written whole, a restarted stage finds
its own work again, and other settings can never resume it.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torchrec_adrec.config import Config
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.ranks import Alone, Ranks
from torchrec_adrec.stages import CONFIG, RECORD, Record, Stage, describe


@contextmanager
def at_work(
    stage: Stage, config: Config, run: Path, ranks: Ranks | None = None
) -> Iterator[Path]:
    """Give the stage its partial folder; on success record and rename it.

    What an interrupted stage left in the folder is still there if the stage resumes,
    otherwise it is removed first.
    """
    ranks = ranks or Alone()
    record = describe(stage, config, run)
    partial = run / f"{stage.name}.partial-{record.made_from}"
    with _only_one(run) if ranks.is_first else nullcontext():
        yield from _work(stage, config, run, ranks, record, partial)


def _work(
    stage: Stage, config: Config, run: Path, ranks: Ranks, record: Record, partial: Path
) -> Iterator[Path]:
    if ranks.is_first:
        if not stage.resumes:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
    ranks.barrier()
    yield partial
    ranks.barrier()
    if ranks.is_first:
        config.save(partial / CONFIG)
        (partial / RECORD).write_text(record.model_dump_json() + "\n")
        _publish(partial, run / stage.name)
    ranks.barrier()


@contextmanager
def _only_one(run: Path) -> Iterator[None]:
    """Hold the run's lock; the system frees it when the process ends, however."""
    with (run / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another command is at work in {run}") from None
        yield


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
