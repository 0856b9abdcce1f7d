"""A disk that is full or forbidden is one line and exit code 2, in every stage."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from conftest import REPOSITORY
from torch.distributed.checkpoint.api import CheckpointException

from torchrec_adrec.errors import DataError, DiskError
from torchrec_adrec.runtime.disk import disk_errors

COMMANDS = {
    "data": "prepare",
    "retrieval": "train retrieval",
    "export": "export",
    "index": "index",
}


def of_another_rank(error: BaseException) -> CheckpointException:
    return CheckpointException("", {1: (error, traceback.StackSummary())})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "anything"),
        OSError("Error writing bytes. Detail: [errno 28] No space left on device"),
        RuntimeError("faiss: write error: 0 != 1 (No space left on device)"),
        of_another_rank(OSError(errno.ENOSPC, "anything")),
    ],
)
def test_every_form_of_a_full_disk(error: BaseException, tmp_path: Path) -> None:
    message = f"^{tmp_path}: No space left on device; free some space"
    with pytest.raises(DiskError, match=message) as raised, disk_errors(tmp_path):
        raise error
    assert raised.value.code == 2


def test_it_is_found_behind_other_errors(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="Disk quota exceeded"), disk_errors(tmp_path):
        try:
            raise OSError(errno.EDQUOT, "")
        except OSError:
            raise ValueError("closing failed too")  # noqa: B904
    for code in (errno.EACCES, errno.EROFS):
        with (
            pytest.raises(DiskError, match=r"^/a/b: .*; make it"),
            disk_errors(tmp_path),
        ):
            raise OSError(code, "", "/a/b")


def test_what_torch_keeps_to_itself(tmp_path: Path) -> None:
    hidden = RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 7 vs 5"
    )
    with pytest.raises(DiskError, match="MiB are free there"), disk_errors(tmp_path):
        raise of_another_rank(hidden)


NO_ROOM = """
import resource, sys
from pathlib import Path
import numpy as np
from torchrec_adrec.runtime.disk import disk_errors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with disk_errors(Path(sys.argv[1])):
    np.save(sys.argv[1] + "/a.npy", np.zeros(1000))
"""


def test_what_numpy_keeps_to_itself(tmp_path: Path) -> None:
    """It says how many numbers it wrote, and nothing of the system's error."""
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert f"DiskError: {tmp_path}: a file could not be written" in done.stderr


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, ""), RuntimeError("a bug"), DataError("rows")],
)
def test_other_errors_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, disk_errors(tmp_path):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_stage_that_cannot_write(
    stage: str, finished_run: Path, tmp_path: Path
) -> None:
    """No file may be as large as the stage's largest one: EFBIG, also for root."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished_run / "config.yaml", run)
    if stage != "data":
        for name in ("data", "retrieval", "export"):
            (run / name).symlink_to(finished_run / name)
    (run / stage).unlink(missing_ok=True)
    files = [path for path in (finished_run / stage).rglob("*") if path.is_file()]
    largest = max(path.stat().st_size for path in files)
    args = (*COMMANDS[stage].split(), "--out", str(run))
    done = subprocess.run(
        [sys.executable, "-m", "torchrec_adrec", *args],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (largest // 2,) * 2
        ),
    )
    errors = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1 and errors[0].startswith(f"error: {run}"), errors
    assert not (run / stage).exists()
