"""The process group, opened and closed by the command that needs it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]
    HashStore,
    PrefixStore,
    Store,
)

from torchrec_adrec.errors import ConfigError

SWITCH_S = 0.0005


@dataclass(frozen=True)
class Process:
    """This rank among `world_size`, and its device."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what only one may write."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.device.type == "cuda":
            dist.barrier(device_ids=[self.device.index])
        else:
            dist.barrier()


@contextmanager
def process_group(
    device: str, timeout: timedelta = timedelta(minutes=10)
) -> Iterator[Process]:
    """Join the group that the launcher describes, or make one of a single process.

    Args:
        device: `auto`, `cpu` (gloo) or `cuda` (nccl).
        timeout: how long a rank waits for the others.

    Raises:
        ConfigError: `cuda` asked for and not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device = cuda, but torch finds no GPU; set device=cpu or auto"
        )
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    # So long may the thread that reads ahead hold the interpreter: with Python's 5 ms
    # training lost 4% to loading, with this 1.5 to 2.5%.
    sys.setswitchinterval(SWITCH_S)
    rank, size = (
        int(os.environ.get("RANK", "0")),
        int(os.environ.get("WORLD_SIZE", "1")),
    )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    place = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else None
    )
    if place is not None:
        torch.cuda.set_device(place)
    else:
        # The launcher leaves one thread a rank; share the cores among them instead.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
    dist.init_process_group(
        # Objects (plans, names) travel over the host: they are no business of a GPU's.
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        rank=rank,
        world_size=size,
        timeout=timeout,
        store=_store(rank, size, timeout),
        device_id=place,
    )
    try:
        yield Process(rank, size, local, place or torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def _store(rank: int, size: int, timeout: timedelta) -> Store:
    """Where ranks find one another.

    The launcher's store outlives a restart, and torch 2.13 looks up the ranks of the
    new attempt under the same names: one that is early finds the address of a dead rank
    ("Connection refused", in half of the restarts here). So every attempt has a room of
    its own. Agents of several nodes may count differently; for them our component makes
    a new store each time.
    """
    if "MASTER_ADDR" not in os.environ:
        return HashStore()
    store: Store
    store, *_ = next(dist.rendezvous("env://", rank, size, timeout=timeout))  # type: ignore[attr-defined]
    store.set_timeout(timeout)
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    return PrefixStore(f"attempt-{restarts()}", store)


def restarts() -> int:
    """How often the launcher has started these ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
