"""The candidates of the softmax that a row leaves out, as a mask of fixed shape."""

from typing import NamedTuple

import torch
from torch import Tensor


class ExcludedCandidates(NamedTuple):
    """The candidates that each row leaves out: those whose item is in its history.

    Attributes:
        history: (A, L) int64 items, padded with negative numbers.
        items: (N,) int64 >= 0, the item of each candidate.
    """

    history: Tensor
    items: Tensor

    def mask(self, rows: slice) -> Tensor:
        """(M, N) bool, true for what some rows leave out.

        Comparing all items with all histories would take M * N * L steps. Instead the
        candidates are sorted by item, so that each item of a history is one stretch of
        them. Adding 1 where a stretch begins and -1 behind its end makes the running
        sum positive inside the stretches and 0 elsewhere; then the order is undone.
        """
        sorted_items, order = self.items.sort(stable=True)
        history = self.history[rows].contiguous()
        first = torch.searchsorted(sorted_items, history)
        end = torch.searchsorted(sorted_items, history, right=True)
        # One more column than candidates: a stretch may end behind the last of them.
        # The padding of a history is a stretch of length 0, whose +1 and -1 cancel.
        edges = torch.zeros(
            len(history), len(sorted_items) + 1, dtype=torch.int32, device=order.device
        )
        one = torch.ones_like(first, dtype=torch.int32)
        edges.scatter_add_(1, first, one).scatter_add_(1, end, -one)
        inside = edges.cumsum(dim=1, dtype=torch.int32)[:, :-1] > 0
        places = torch.arange(len(order), device=order.device)
        inverse = torch.empty_like(order).scatter_(0, order, places)
        return inside[:, inverse]

    def holds(self, columns: Tensor) -> Tensor:
        """Whether a row leaves a candidate out, (A, P) bool for candidates (A, P)."""
        items = self.items[columns]
        return (items[:, :, None] == self.history[:, None, :]).any(dim=2)
