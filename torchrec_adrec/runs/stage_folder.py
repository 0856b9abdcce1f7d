"""The folder of a stage appears only once it is whole.

A stage works in `RUN/NAME.partial-<fingerprint of all that goes in>`, which is renamed
when it is done. So a folder without `.partial` was written whole, a stage that was
started again finds its own work, and a stage with other settings never resumes it. A
stage that keeps its versions is put beside them (`versions.py`).
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runs.run_lock import STAGE_LOCK
from torchrec_adrec.runs.stages import CONFIG, RECORD, Record, Stage, describe
from torchrec_adrec.runs.versions import VERSIONS, publish_version
from torchrec_adrec.runtime.files import sha256
from torchrec_adrec.runtime.ranks import Ranks, SingleProcess
from torchrec_adrec.runtime.status import Status, send


@contextmanager
def stage_workspace(
    stage: Stage, config: Config, run: Path, ranks: Ranks | None = None
) -> Iterator[Path]:
    """Yield the stage's partial folder; on success record what it is, and rename it.

    What an interrupted stage has left in the folder stays if the stage resumes, and is
    removed first otherwise. For the command that holds the run (`run_lock.py`).

    Args:
        stage: the stage.
        config: its settings.
        run: the run's folder.
        ranks: the processes that share the stage; by default this one alone.

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
    # No rank may look for the folder, or for the fingerprint, before it is written.
    ranks.barrier()
    _check_same(record, stage, run, ranks)
    yield partial
    # No rank may rename the folder while another one still writes into it.
    ranks.barrier()
    if ranks.is_first:
        config.save(partial / CONFIG)
        record = record.model_copy(update={"config": sha256(partial / CONFIG)})
        (partial / RECORD).write_text(record.model_dump_json() + "\n")
        _put_in_place(partial, stage, config, run, record.build_id)
        send(Status("end", stage.name))
    # The next stage reads this one under its final name.
    ranks.barrier()


def _put_in_place(
    partial: Path, stage: Stage, config: Config, run: Path, build_id: str
) -> None:
    final = run / stage.name
    if stage.versions:
        publish_version(partial, final, build_id, config.index.keep_versions)
        _remove_partials(final)
    else:
        publish(partial, final)


def _check_same(record: Record, stage: Stage, run: Path, ranks: Ranks) -> None:
    expected = (run / STAGE_LOCK).read_text()
    if record.input_fingerprint != expected:
        raise ConfigError(
            f"rank {ranks.rank} would make {stage.name} from other settings or inputs"
            f" ({record.input_fingerprint}) than rank 0 ({expected}). Launch"
            " all ranks with the same command, and change nothing meanwhile"
        )


def check_place(stage: Stage, run: Path) -> None:
    """Refuse, before the work, a place where the stage's folder could not be put.

    Raises:
        ConfigError: names what is in the way, and what to do.
    """
    final = run / stage.name
    inside = (final / VERSIONS,) if stage.versions else ()
    partials = run.glob(f"{stage.name}.partial-*")
    for path in (final, *inside, _old(final), *partials):
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


def publish(partial: Path, final: Path) -> None:
    """Put a stage's new folder in the old one's place.

    A folder cannot be renamed over another one, so the old one steps aside first. If
    this process is killed between the two renames there is no folder of that name, and
    readers say so; there is never one of which half is old.
    """
    old = _old(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    _remove_partials(final)


def _remove_partials(final: Path) -> None:
    for stale in final.parent.glob(f"{final.name}.partial-*"):
        shutil.rmtree(stale)


def make_run(run: Path) -> None:
    """Make the folder of a run, and try whether it can be written to.

    Raises:
        ConfigError: it cannot.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe = run / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write to {run}: {error.strerror}") from None
