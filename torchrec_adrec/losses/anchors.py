"""The rows that a contrast is made for: the clicked ones."""

from typing import NamedTuple

import torch
from torch import Tensor


class Anchors(NamedTuple):
    """Rows of a batch that count, filled up so that few shapes occur.

    Attributes:
        rows: (A,) int64, rising; those behind the last real one are row 0.
        weights: (A,) float32, above 0; of those that fill up 0.
    """

    rows: Tensor
    weights: Tensor

    def trimmed(self) -> "Anchors":
        """Without those that fill up. Reads the device: for CPUs, where reading is free
        and a row less is a row less to compute.
        """
        count = int(torch.count_nonzero(self.weights))
        return Anchors(self.rows[:count], self.weights[:count])


def anchors_of(weights: Tensor) -> Anchors:
    """The anchors among rows (B,) with these weights; not filled up."""
    rows = weights.nonzero().squeeze(1)
    return Anchors(rows, weights[rows])
