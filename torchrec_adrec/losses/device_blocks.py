"""The softmax in few large blocks, for devices on which a launch costs more than work.

On a CPU small blocks stay in the cache and equal ids are found by sorting; on a GPU
that was 42 launches a block and four waits for the host. Here every shape is fixed and
nothing is read back, so that a step can be queued ahead, or captured as a graph.
"""

import torch
from torch import Tensor

from torchrec_adrec.losses.block import Block
from torchrec_adrec.losses.chunked import Candidates
from torchrec_adrec.losses.excluded import ExcludedCandidates
from torchrec_adrec.losses.known_gradients import Softmax, with_known_gradients
from torchrec_adrec.losses.products import as_left, as_right, halves, wide_product
from torchrec_adrec.losses.slopes import slopes

BLOCK = 1 << 28  # logits held at a time: 1 GB, and half as much again for the slopes


def large_block_cross_entropy(
    rows: Tensor,
    columns: Candidates,
    own: Tensor,
    weights: Tensor,
    excluded: ExcludedCandidates | None = None,
) -> Tensor:
    """The same scalar as `losses.chunked.chunked_cross_entropy`, with its arguments."""

    def find(rows: Tensor, vectors: Tensor, low: bool) -> Softmax:
        return _in_large_blocks(rows, vectors, columns, own, weights, excluded, low)

    return with_known_gradients(find, rows, columns.vectors)


def _in_large_blocks(
    rows: Tensor,
    vectors: Tensor,
    columns: Candidates,
    own: Tensor,
    weights: Tensor,
    excluded: ExcludedCandidates | None,
    low: bool,
) -> Softmax:
    """`low`: the products of the gradients are made in bfloat16; logits are exact."""
    count = len(rows)
    blocks = max(-(-count * len(vectors) // BLOCK), 1)
    size = max(-(-count // blocks), 1)
    narrow = torch.bfloat16 if low else torch.float32
    row_halves, vector_halves = halves(rows), halves(vectors)
    scale = row_halves.scale * vector_halves.scale
    left, right = as_left(row_halves), as_right(vector_halves).T
    low_rows, low_vectors = rows.to(narrow), vectors.to(narrow)
    total, grad_rows = rows.new_zeros(()), []
    grad_vectors = torch.zeros_like(vectors)
    for first in range(0, count, size):
        at = slice(first, min(first + size, count))
        block = Block(
            wide_product(left[at], right),
            scale,
            columns.correction,
            columns.ids,
            own[at],
            weights[at],
            None if excluded is None else excluded.of(at),
        )
        slope, log_p = slopes(block, narrow)
        total = total - log_p @ weights[at]
        grad_rows.append(wide_product(slope, low_vectors))
        grad_vectors += wide_product(slope.T, low_rows[at])
    return Softmax(total, torch.cat(grad_rows or [rows]), grad_vectors)
