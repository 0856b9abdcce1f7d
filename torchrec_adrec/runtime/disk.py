"""A full or forbidden disk becomes one line, whichever library was writing."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torchrec_adrec.errors import AdRecError, DiskError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EIO)
# torch.save and numpy's `tofile`, which `np.save` calls, hide the system's error behind
# complaints of their own.
WRITER_FAILED = re.compile(
    r"unexpected pos \d+ vs|PytorchStreamWriter failed|\d+ requested and \d+ written"
)
ADVICE = "what was written whole is kept, and the same command goes on from there"


class Refusal(NamedTuple):
    """An error of the system, as far as a library passes it on.

    Attributes:
        code: an errno; 0 where the library does not tell it.
        path: of the file, where the error names it.
    """

    code: int
    path: str | None = None


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the errors that follow from a full or forbidden disk into a `DiskError`.

    Libraries hide the system's error: the writer of a checkpoint wraps the errors of
    all ranks, FAISS and polars keep only its text, torch and numpy not even that.

    Args:
        folder: the one that is written to, for errors that name no file.

    Raises:
        DiskError: in place of any error that a disk's refusal led to.
    """
    try:
        yield
    except AdRecError:
        raise
    except BaseException as error:
        refusals = [r for cause in _causes(error) if (r := _refusal(cause))]
        if not refusals:
            raise
        # One of them may be torch's own complaint, without a code: prefer the system's.
        refusal = max(refusals, key=lambda refusal: bool(refusal.code))
        raise DiskError(_line(refusal, folder)) from None


def _line(refusal: Refusal, folder: Path) -> str:
    path = refusal.path or str(folder)
    if refusal.code == 0:
        free = shutil.disk_usage(folder).free >> 20
        return (
            f"{path}: a file could not be written whole; {free:,} MiB are free there,"
            f" look at quotas and limits too: {ADVICE}"
        )
    fix = "make it readable and writable"
    if refusal.code in FULL:
        fix = "free some space"
    return f"{path}: {os.strerror(refusal.code)}; {fix}: {ADVICE}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that led to one, on any rank, and then the error itself."""
    # torch's CheckpointException: rank -> (error, its traceback).
    failures = getattr(error, "failures", None)
    of_ranks = [pair[0] for pair in failures.values()] if failures else []
    for cause in (*of_ranks, error.__cause__, error.__context__):
        if cause is not None:
            yield from _causes(cause)
    yield error


def _refusal(error: BaseException) -> Refusal | None:
    codes = (*FULL, *FORBIDDEN)
    if isinstance(error, OSError) and error.errno in codes:
        path = error.filename
        return Refusal(error.errno, str(path) if isinstance(path, str | Path) else None)
    of_polars = type(error).__module__.partition(".")[0] == "polars"
    if not (isinstance(error, OSError | RuntimeError) or of_polars):
        return None
    text = str(error)
    code = next((code for code in codes if os.strerror(code) in text), None)
    if code is None and WRITER_FAILED.search(text):
        code = 0
    return None if code is None else Refusal(code)
