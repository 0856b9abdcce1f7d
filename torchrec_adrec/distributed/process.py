"""The process group, opened and closed by the command that needs it."""

import gc
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]
    HashStore,
    PrefixStore,
    Store,
)

from torchrec_adrec.errors import ConfigError, LostRankError

SWITCH_S = 0.0005
# What gloo and NCCL say when the process at the other end has gone.
LOST = re.compile(r"closed by peer|reset by peer|remote process exited")
LAST_WORDS_S = 5
BEGUN = "begun.txt"


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
        LostRankError: another rank has ended meanwhile.
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
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        # The other one knows why: a launcher that sees it end first ends this one.
        time.sleep(LAST_WORDS_S)
        reason = str(error).strip().splitlines()[-1]
        raise LostRankError(f"another rank has ended: {reason}") from None
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


@contextmanager
def unchanged_process(device: torch.device) -> Iterator[None]:
    """Put back afterwards what a stage sets for the whole process.

    So the stage after it computes what it would in a process of its own: the precision
    of products, the threads and the generators are as they were, and the models of the
    one before take no memory.
    """
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    drawn = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    switch = sys.getswitchinterval()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        torch.set_rng_state(drawn[0])
        np.random.set_state(drawn[1])
        random.setstate(drawn[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)
        sys.setswitchinterval(switch)
        gc.unfreeze()
        gc.collect()
        if on_gpu is not None:
            torch.cuda.empty_cache()


def restarts() -> int:
    """How often the launcher has started these ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def restarts_of(folder: Path) -> int:
    """How often it has since its job began to work in a stage's folder.

    For the first rank. A job may have several stages: a note in the folder says at
    which attempt this one was begun.
    """
    job, now = os.environ.get("TORCHELASTIC_RUN_ID", "none"), restarts()
    if job == "none":  # a launcher that was given no name
        job = str(os.getppid())
    note = folder / BEGUN
    if note.exists():
        begun_by, _, attempt = note.read_text().partition(" ")
        if begun_by == job:
            return now - int(attempt)
    note.write_text(f"{job} {now}")
    return 0
