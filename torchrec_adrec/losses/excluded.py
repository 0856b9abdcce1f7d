"""Columns of the softmax that a row leaves out, as a mask of fixed shape."""

from typing import NamedTuple

import torch
from torch import Tensor


class ExcludedCandidates(NamedTuple):
    """Which columns each row leaves out: those whose item the row's history holds.

    Attributes:
        history: (A, L) int64 items, negative where there is none.
        items: (N,) int64 >= 0, the item of each column.
    """

    history: Tensor
    items: Tensor

    def of(self, at: slice) -> Tensor:
        """(M, N) bool of some rows.

        Comparing all items with all histories would take M * N * L steps. The columns
        are sorted by item instead: each item of a history is one stretch of them, and a
        running sum over the stretches' beginnings and ends says what lies in one.
        """
        rising, order = self.items.sort(stable=True)
        history = self.history[at].contiguous()
        first = torch.searchsorted(rising, history)
        behind = torch.searchsorted(rising, history, right=True)
        edges = torch.zeros(
            len(history), len(rising) + 1, dtype=torch.int32, device=history.device
        )
        one = torch.ones_like(first, dtype=torch.int32)
        edges.scatter_add_(1, first, one).scatter_add_(1, behind, -one)
        inside = edges.cumsum(dim=1, dtype=torch.int32)[:, :-1] > 0
        back = torch.empty_like(order).scatter_(
            0, order, torch.arange(len(order), device=order.device)
        )
        return inside[:, back]
