"""The rows that a retrieval loss is computed for: the clicked ones."""

from typing import NamedTuple

import torch
from torch import Tensor


class Anchors(NamedTuple):
    """Clicked rows of a batch, padded so that only a few shapes occur.

    Attributes:
        rows: (A,) int64, rising; the padding behind the last clicked row is row 0.
        weights: (A,) float32, above 0; the padding has weight 0.
    """

    rows: Tensor
    weights: Tensor

    def trimmed(self) -> "Anchors":
        """The anchors without their padding.

        This reads the device. It is meant for CPUs, where reading is free and every
        row that is left out saves its computation.
        """
        count = int(torch.count_nonzero(self.weights))
        return Anchors(self.rows[:count], self.weights[:count])


def anchors_of(weights: Tensor) -> Anchors:
    """The rows of weight above 0 among rows (B,), without padding."""
    rows = weights.nonzero().squeeze(1)
    return Anchors(rows, weights[rows])
