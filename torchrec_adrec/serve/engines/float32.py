"""The head as it was trained."""

from torch import nn


def in_float32(head: nn.Module, labels: int) -> nn.Module:
    """Return the head itself."""
    return head
