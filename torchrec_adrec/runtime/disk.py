"""What a disk refuses, in one line, whichever library was writing."""

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
# torch.save hides what the system said behind complaints of its own.
UNSAID = re.compile(r"unexpected pos \d+ vs|PytorchStreamWriter failed")
ADVICE = "what was written whole has stayed, and the same command goes on from there"


class Refusal(NamedTuple):
    """What the system said.

    Attributes:
        code: an errno, 0 where the library keeps it to itself.
        path: of the file, where the error names it.
    """

    code: int
    path: str | None = None


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what comes of a full or forbidden disk into a `DiskError`.

    Libraries wrap it: a checkpoint's writer gathers the errors of all ranks, FAISS and
    polars keep its text alone, torch not even that.

    Args:
        folder: named where the error names no file.

    Raises:
        DiskError: in place of any error that a disk's refusal led to.
    """
    try:
        yield
    except AdRecError:
        raise
    except BaseException as error:
        refusals = [found for part in _led_to(error) if (found := _refusal(part))]
        if not refusals:
            raise
        told = max(refusals, key=lambda refusal: bool(refusal.code))
        raise DiskError(_line(told, folder)) from None


def _line(refusal: Refusal, folder: Path) -> str:
    where = refusal.path or str(folder)
    if refusal.code == 0:
        free = shutil.disk_usage(folder).free >> 20
        return (
            f"{where}: a file could not be written whole; {free:,} MiB are free there,"
            f" look at quotas and limits too: {ADVICE}"
        )
    fix = "make it readable and writable"
    if refusal.code in FULL:
        fix = "free some space"
    return f"{where}: {os.strerror(refusal.code)}; {fix}: {ADVICE}"


def _led_to(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was made of, on any rank."""
    # torch's CheckpointException: rank -> (error, its place).
    of_ranks = getattr(error, "failures", None)
    inner = [pair[0] for pair in of_ranks.values()] if of_ranks else []
    for part in (*inner, error.__cause__, error.__context__):
        if part is not None:
            yield from _led_to(part)
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
    if code is None and UNSAID.search(text):
        code = 0
    return None if code is None else Refusal(code)
