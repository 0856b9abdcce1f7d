"""Gloo runs the collectives of a group in one thread, or it corrupts the heap.

Torch 2.13 gives every group two threads. After each collective a thread assigns its
name to a string that both share, without a lock (`ProcessGroupGloo::runLoop`). A name
of more than 15 characters, as ALLGATHER_COALESCED of a gather with a gradient, lies on
the heap: while one thread copies the next name there, the other frees that memory. Its
new owner then finds `ALLREDUCE` in the middle of its data, or the process dies later of
`malloc(): unaligned tcache chunk detected`: three trainings on busy cores did, and with
1 ms more between the two a loop of such collectives does in seconds. A single thread
has nobody to race with. It waits for no other either: all ranks begin their collectives
in the same order.
"""

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_timeout

INTERFACES = "GLOO_SOCKET_IFNAME"  # environment: of gloo, separated by commas

_Gloo: Any = dist.ProcessGroupGloo  # torch's stubs do not have all of its options
_init = _Gloo.__init__


def use_one_thread() -> None:
    """Give one thread to every gloo group that this process makes from now on.

    Torch passes no options on to gloo, so its constructor is replaced: the groups that
    TorchRec makes for itself need this as much as ours.
    """
    _Gloo.__init__ = _init_with_one_thread


def _init_with_one_thread(
    group: Any,
    store: Store,
    rank: int,
    size: int,
    timeout: timedelta = default_pg_timeout,
) -> None:
    """Do what torch's own constructor of these arguments does, but for the threads."""
    options = _Gloo._Options()
    names = os.environ.get(INTERFACES)
    options._devices = (
        [_Gloo.create_device(interface=name) for name in names.split(",")]
        if names
        else [_Gloo.create_default_device()]
    )
    options._timeout = timeout
    options._threads = 1
    _init(group, store, rank, size, options)
