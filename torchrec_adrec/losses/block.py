"""What the softmax knows of some of its rows."""

from typing import NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """Some rows of the softmax, with what is known of their columns.

    Attributes:
        products: (M, N) float32, rows . vectors, not yet multiplied by `scale`.
        scale: () float32, makes a logit of a product.
        correction: (N,) float32, subtracted from all columns but the row's own.
        ids: (N,) int64; a column with the id of the row's own one is left out.
        own: (M,) int64, the row's own column: the right one.
        weights: (M,) float32, the share of each row in the loss.
        excluded: (M, N) bool, further columns to leave out; None: none.
    """

    products: Tensor
    scale: Tensor
    correction: Tensor
    ids: Tensor
    own: Tensor
    weights: Tensor
    excluded: Tensor | None
