"""The inputs of the softmax for one block of its rows."""

from typing import NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """Some rows of the softmax, with all that is known about their candidates.

    Attributes:
        products: (M, N) float32, rows . vectors, not yet multiplied by `scale`.
        scale: () float32, turns a product into a logit.
        correction: (N,) float32, subtracted from every logit but the target's.
        ids: (N,) int64; another candidate with the target's id is excluded.
        target: (M,) int64, the candidate that each row should choose.
        weights: (M,) float32, the share of each row in the loss.
        excluded: (M, N) bool, further candidates to exclude; None: no others.
    """

    products: Tensor
    scale: Tensor
    correction: Tensor
    ids: Tensor
    target: Tensor
    weights: Tensor
    excluded: Tensor | None
