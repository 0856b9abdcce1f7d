"""Finds the ranks of one machine, which decode the training rows together."""

import os
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch.distributed as dist

from torchrec_adrec.data.loader.node_windows import NodeWindows, shared_path
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.reader_process import nameless_memory
from torchrec_adrec.distributed.process import Process

T = TypeVar("T")


class _Address(NamedTuple):
    """Where a rank runs.

    Attributes:
        machine: equal for processes that see one another by number; None: nobody does.
        pid: its number.
        path: of memory that the others of its machine can open.
    """

    machine: tuple[str, int] | None
    pid: int
    path: str


def share_windows(reader: Reader, process: Process) -> NodeWindows | None:
    """Let the ranks of each machine decode their windows together. Collective.

    Args:
        reader: of this rank.
        process: this rank.

    Returns:
        What the reader decodes to now; None: each rank decodes for itself, because it
        is alone on its machine or cannot see the memory of the others.
    """
    # A step must lie in two windows at most: a rank that has its rows of a step waits
    # for one that needs a third window, for which the first must be released.
    if process.world_size == 1 or reader.shuffle_window < reader.batch_size:
        return None
    split, columns, rows = reader.split, reader.columns, reader.most_window_rows
    size = NodeWindows.nbytes(split, columns, rows, process.world_size)
    # Every rank offers memory, which is empty until somebody writes to it; that of the
    # first rank of a machine is used.
    memory = nameless_memory(size)
    addresses = _gathered(_Address(_machine(), os.getpid(), shared_path(memory)))
    machine = addresses[process.rank].machine
    neighbours = [a for a in addresses if a.machine == machine]
    try:
        file = Path(neighbours[0].path).open("r+b", buffering=0)  # noqa: SIM115
    except OSError:
        file = None
    opened = _gathered((machine, file is not None))
    # All ranks of a machine or none: one that decodes alone would be waited for.
    failed = (machine, False) in opened
    if file is None or failed or machine is None or len(neighbours) == 1:
        return None
    rank = neighbours.index(addresses[process.rank])
    pids = [a.pid for a in neighbours]
    windows = NodeWindows(split, columns, rows, file, rank, pids)
    reader.decode_to(windows)
    return windows


def _gathered(value: T) -> list[T]:
    """The object of every rank."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _machine() -> tuple[str, int] | None:
    """This boot of the kernel, and the numbering of processes in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None
