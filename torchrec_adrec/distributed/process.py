"""Opens and closes the process group, for the command that needs it."""

import gc
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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

from torchrec_adrec.distributed.gloo import use_one_thread
from torchrec_adrec.errors import ConfigError, LostRankError

# So long may the thread that reads ahead hold the interpreter: with Python's 5 ms
# training lost 4% to loading, with this 1.5 to 2.5%.
SWITCH_S = 0.0005
# What gloo and NCCL say when the process at the other end has gone.
LOST = re.compile(r"closed by peer|reset by peer|remote process exited")
LAST_WORDS_S = 5  # for the rank that knows why to end first
ALONE = timedelta(days=7)  # for which a rank may work while the others wait
BEGUN = "begun.txt"  # at which attempt of which job a stage was begun


@dataclass(frozen=True)
class Process:
    """This rank among `world_size`, and its device.

    Attributes:
        waiting: the group, on the host, in which ranks wait for one that works alone;
            None: the group of all collectives.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    waiting: dist.ProcessGroup | None = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what only one may write."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks, however long one of them works alone.

        The first rank measures an index or merges files for hours, where a collective
        of all ranks that takes ten minutes has lost one. A rank that ends closes its
        connections, which the others see at once.
        """
        dist.barrier(self.waiting)


@contextmanager
def process_group(
    device: str, timeout: timedelta = timedelta(minutes=10)
) -> Iterator[Process]:
    """Join the group that the launcher describes, or make one of a single process.

    Args:
        device: `auto`, `cpu` (gloo) or `cuda` (nccl).
        timeout: how long a collective waits for the other ranks; a barrier waits as
            long as one of them works alone.

    Raises:
        ConfigError: `cuda` asked for and not there.
        LostRankError: another rank has ended meanwhile.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device = cuda, but torch finds no GPU; set device=cpu or auto"
        )
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    sys.setswitchinterval(SWITCH_S)
    rank, world_size = _from_launcher("RANK", 0), _from_launcher("WORLD_SIZE", 1)
    local_world_size = _from_launcher("LOCAL_WORLD_SIZE", 1)
    gpu = torch.device("cuda", _from_launcher("LOCAL_RANK", 0)) if cuda else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    else:
        # The launcher leaves one thread a rank; share the cores among them instead.
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // local_world_size))
    use_one_thread()
    dist.init_process_group(
        # Objects (plans, names) travel over the host: they are no business of a GPU's.
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        store=_store(rank, world_size, timeout),
        device_id=gpu,
    )
    waiting = dist.new_group(backend="gloo", timeout=ALONE)
    try:
        yield Process(
            rank, world_size, local_world_size, gpu or torch.device("cpu"), waiting
        )
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        # The other one knows why: a launcher that sees it end first ends this one.
        time.sleep(LAST_WORDS_S)
        reason = str(error).strip().splitlines()[-1]
        raise LostRankError(f"another rank has ended: {reason}") from None
    finally:
        dist.destroy_process_group()


def _from_launcher(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _store(rank: int, world_size: int, timeout: timedelta) -> Store:
    """Open the store in which ranks find one another.

    The launcher's store outlives a restart, and torch 2.13 looks up the ranks of the
    new attempt under the same names: one that is early finds the address of a dead rank
    ("Connection refused", in half of the restarts here). So every attempt has names of
    its own. Agents of several nodes may count differently; for them our component makes
    a new store each time.
    """
    if "MASTER_ADDR" not in os.environ:
        return HashStore()
    store: Store
    store, *_ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))  # type: ignore[attr-defined]
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
    cpu_state = torch.get_rng_state()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    gpu_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    switch_interval = sys.getswitchinterval()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        torch.set_rng_state(cpu_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if gpu_state is not None:
            torch.cuda.set_rng_state(gpu_state, device)
        sys.setswitchinterval(switch_interval)
        gc.unfreeze()
        gc.collect()
        if gpu_state is not None:
            torch.cuda.empty_cache()


def restarts() -> int:
    """Return how often the launcher has started these ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def restarts_of(folder: Path) -> int:
    """Return how often it has since its job began to work in a stage's folder.

    Only the first rank calls it. A job may have several stages: a note in the folder
    says at which attempt this one was begun.
    """
    job, attempt = os.environ.get("TORCHELASTIC_RUN_ID", "none"), restarts()
    if job == "none":  # a launcher that was given no name
        job = str(os.getppid())
    note = folder / BEGUN
    if note.exists():
        begun_by, _, first_attempt = note.read_text().partition(" ")
        if begun_by == job:
            return attempt - int(first_attempt)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{job} {attempt}")
    return 0
