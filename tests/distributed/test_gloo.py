"""Gloo has one thread for each group: two of them corrupt the heap."""

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from torchrec_adrec.distributed.gloo import INTERFACES
from torchrec_adrec.distributed.process import process_group

THREAD = "pt_gloo_runloop"  # the name that torch gives to a thread of a group


def threads() -> int:
    """How many threads of this process run collectives of gloo."""
    tasks = Path("/proc/self/task").iterdir()
    return sum((task / "comm").read_text().strip() == THREAD for task in tasks)


def options_of(
    groups: Sequence[dist.ProcessGroup | None],
) -> list[tuple[int, timedelta]]:
    cpu = torch.device("cpu")
    backends = [g._get_backend(cpu) for g in groups if g is not None]
    options: list[Any] = [backend.options for backend in backends]
    return [(o._threads, o._timeout) for o in options]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the threads in /proc")
def test_every_group_has_one_thread_and_its_timeout() -> None:
    before = threads()
    with process_group("cpu", timedelta(minutes=7)) as process:
        # One that a library makes for itself.
        other = dist.new_group(backend="gloo", timeout=timedelta(minutes=3))
        dist.all_reduce(torch.ones(2), group=other)  # it has begun, and has its name
        dist.all_reduce(torch.ones(2))
        process.barrier()
        assert threads() - before == 3
        assert options_of([dist.group.WORLD, process.waiting, other]) == [
            (1, timedelta(minutes=7)),
            (1, timedelta(days=7)),
            (1, timedelta(minutes=3)),
        ]


def test_the_interface_of_the_environment_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(INTERFACES, "lo")
    with process_group("cpu"):
        dist.all_reduce(torch.ones(1))
    monkeypatch.setenv(INTERFACES, "lo,no_such_interface")
    with pytest.raises(RuntimeError, match="interface"), process_group("cpu"):
        pass
