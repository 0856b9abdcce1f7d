"""The softmax in a few large blocks, for devices where a launch costs more than work.

On a CPU small blocks stay in the cache and equal ids are found by sorting; on a GPU
that took 42 launches a block and made the host wait four times. Here every shape is
fixed and nothing is read back, so that a step can be queued ahead, or captured as a
graph.
"""

import torch
from torch import Tensor

from torchrec_adrec.losses.block import Block
from torchrec_adrec.losses.chunked import Candidates
from torchrec_adrec.losses.excluded import ExcludedCandidates
from torchrec_adrec.losses.grad_logits import grad_logits
from torchrec_adrec.losses.hardest import below_hardest
from torchrec_adrec.losses.known_gradients import LossAndGradients, with_known_gradients
from torchrec_adrec.losses.mined import join
from torchrec_adrec.losses.products import as_left, as_right, halves, wide_product

BLOCK = 1 << 28  # logits held at a time: 1 GB, and half as much again for the gradient


def large_block_cross_entropy(
    rows: Tensor,
    candidates: Candidates,
    target: Tensor,
    weights: Tensor,
    excluded: ExcludedCandidates | None = None,
    log_odds: Tensor | None = None,
) -> Tensor:
    """The scalar of `losses.chunked.chunked_cross_entropy`, computed for a device.

    Args:
        rows: (A, D), already divided by the temperature.
        candidates: N of them.
        target: (A,) int64, the candidate that each row should choose.
        weights: (A,).
        excluded: further candidates that rows leave out.
        log_odds: (A,) a further term of each row's sum (`losses.mined.join`).
    """

    def compute(rows: Tensor, vectors: Tensor, use_bfloat16: bool) -> LossAndGradients:
        return _in_large_blocks(
            rows,
            candidates._replace(vectors=vectors),
            target,
            weights,
            excluded,
            use_bfloat16,
            log_odds,
        )

    return with_known_gradients(compute, rows, candidates.vectors, log_odds)


def _in_large_blocks(
    rows: Tensor,
    candidates: Candidates,
    target: Tensor,
    weights: Tensor,
    excluded: ExcludedCandidates | None,
    use_bfloat16: bool,
    log_odds: Tensor | None,
) -> LossAndGradients:
    """Logits are exact either way; `use_bfloat16` is for the gradients' products."""
    vectors = candidates.vectors
    # The block size follows from shapes alone: a size that followed from the data would
    # have to be read from the device.
    blocks = max(-(-len(rows) * len(vectors) // BLOCK), 1)
    block_rows = max(-(-len(rows) // blocks), 1)
    dtype = torch.bfloat16 if use_bfloat16 else torch.float32
    # Factors are split once, for all blocks; see `losses.products`.
    row_halves, vector_halves = halves(rows), halves(vectors)
    scale = row_halves.scale * vector_halves.scale
    left, right = as_left(row_halves), as_right(vector_halves).T
    # These errors are relative to a probability, so bfloat16 is good enough here.
    gradient_rows, gradient_vectors = rows.to(dtype), vectors.to(dtype)
    total, grad_rows, grad_log_odds = rows.new_zeros(()), [], []
    grad_vectors = torch.zeros_like(vectors)
    for first in range(0, len(rows), block_rows):
        block = slice(first, min(first + block_rows, len(rows)))
        mask = None if excluded is None else excluded.mask(block)
        logits = Block(
            wide_product(left[block], right),
            scale,
            candidates.correction,
            candidates.ids,
            target[block],
            weights[block],
            mask,
        )
        gradient, log_p = grad_logits(_with_choices(logits, candidates), dtype)
        term = None if log_odds is None else log_odds[block]
        losses, shares = join(-log_p, term)
        total = total + losses @ weights[block]
        grad_log_odds.append((1 - shares) * weights[block])
        # The gradient has the rows' weights already.
        share = shares[:, None].to(dtype)
        grad_rows.append(wide_product(gradient, gradient_vectors) * shares[:, None])
        grad_vectors += wide_product(gradient.T, gradient_rows[block] * share)
    return LossAndGradients(
        total,
        torch.cat(grad_rows or [rows]),
        grad_vectors,
        torch.cat(grad_log_odds or [weights]),
    )


def _with_choices(block: Block, candidates: Candidates) -> Block:
    """The block under the choices of the candidates that not every loss makes.

    They are made of what a block has already, so the kernel need not know of them.
    """
    if candidates.hidden is not None:
        hidden = candidates.hidden.expand_as(block.products)
        block = block._replace(excluded=_union(hidden, block.excluded))
    if candidates.hardest is not None:
        logits = block.products * block.scale - block.correction
        others = block.ids[block.target][:, None] == block.ids
        logits.masked_fill_(_union(others, block.excluded), -torch.inf)
        easy = below_hardest(logits, candidates.hardest)
        block = block._replace(excluded=_union(easy, block.excluded))
    if candidates.corrects_target:
        # A softmax is the same if all of its logits move: to correct the target is to
        # move all others the other way.
        correction = (block.correction[block.target] / block.scale)[:, None]
        products = block.products + correction
        products.scatter_add_(1, block.target[:, None], -correction)
        block = block._replace(products=products)
    return block


def _union(mask: Tensor, other: Tensor | None) -> Tensor:
    return mask.contiguous() if other is None else mask | other
