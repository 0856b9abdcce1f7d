"""Where the buffer of a batch lies: page-locked memory on the way to a GPU."""

from collections.abc import Callable

import torch
from torch import Tensor

Memory = Callable[[int], Tensor]
"""Allocates so many bytes: (bytes,) uint8."""


def heap(nbytes: int) -> Tensor:
    """New memory, (bytes,) uint8."""
    return torch.empty(nbytes, dtype=torch.uint8)


def pinned(nbytes: int) -> Tensor:
    """New page-locked memory, from which a GPU copies while the host goes on."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def memory_for(device: torch.device) -> Memory:
    """The best memory for batches that are copied to a device."""
    return pinned if device.type == "cuda" else heap
