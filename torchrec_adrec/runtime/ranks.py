"""Ranks: what a stage must know of the processes that it runs on."""

from pathlib import Path
from typing import Protocol


class Ranks(Protocol):
    """The processes that work on one stage together; they share it through files."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def is_first(self) -> bool:
        """Whether this rank merges, renames and records for all."""

    def barrier(self) -> None:
        """Wait for all ranks."""


class SingleProcess:
    """A process that works alone."""

    rank = 0
    world_size = 1
    is_first = True

    def barrier(self) -> None:
        """Return at once: there is nobody to wait for."""


def told_by_first(ranks: Ranks, text: str, path: Path) -> str:
    """Return the text that the first rank gives. Collective.

    Args:
        ranks: the processes that share it.
        text: of this rank; only that of the first one counts.
        path: of a file that all of them see, and that is there only meanwhile.
    """
    if ranks.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    ranks.barrier()
    text = path.read_text()
    ranks.barrier()  # all have read it
    if ranks.is_first:
        path.unlink()
    return text


def share_of(rows: int, ranks: Ranks) -> slice:
    """Return this rank's contiguous share of `rows`.

    >>> share_of(7, SingleProcess())
    slice(0, 7, None)
    """
    share = -(-rows // ranks.world_size)
    return slice(min(ranks.rank * share, rows), min((ranks.rank + 1) * share, rows))
