"""What a stage must know of the processes that it runs on."""

from typing import Protocol


class Ranks(Protocol):
    """Some processes that work on one thing; files are how they share it."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    @property
    def is_first(self) -> bool:
        """Whether this rank merges, renames and records."""

    def barrier(self) -> None:
        """Wait for all ranks."""


class SingleProcess:
    """One process."""

    rank = 0
    world_size = 1
    is_first = True

    def barrier(self) -> None:
        """Nobody to wait for."""
