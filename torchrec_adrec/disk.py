"""What a disk refuses, in one line, whichever library was writing."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_adrec.errors import AdRecError, DiskError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EIO)
ADVICE = "what was written whole has stayed, and the same command goes on from there"


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what comes of a full or forbidden disk into a `DiskError`.

    Libraries wrap it: a checkpoint's writer gathers the errors of all ranks, FAISS and
    polars keep its text alone.

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
        refusal = next(filter(None, map(_refusal, _led_to(error))), None)
        if refusal is None:
            raise
        code, path = refusal
        mend = "free some space" if code in FULL else "make it readable and writable"
        raise DiskError(
            f"{path or folder}: {os.strerror(code)}; {mend}: {ADVICE}"
        ) from None


def _led_to(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was made of, on any rank."""
    # torch's CheckpointException: rank -> (error, its place).
    of_ranks = getattr(error, "failures", None)
    inner = [pair[0] for pair in of_ranks.values()] if of_ranks else []
    for part in (*inner, error.__cause__, error.__context__):
        if part is not None:
            yield from _led_to(part)
    yield error


def _refusal(error: BaseException) -> tuple[int, str | None] | None:
    """The errno and the path of a disk's refusal; None if it is something else."""
    codes = (*FULL, *FORBIDDEN)
    if isinstance(error, OSError) and error.errno in codes:
        path = error.filename
        return error.errno, str(path) if isinstance(path, str | Path) else None
    if isinstance(error, OSError | RuntimeError) or _is_of_polars(error):
        text = str(error)
        return next(((c, None) for c in codes if os.strerror(c) in text), None)
    return None


def _is_of_polars(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "polars"
