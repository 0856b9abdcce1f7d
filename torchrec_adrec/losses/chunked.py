"""Softmax cross-entropy on CPUs against many candidates, one block of rows at a time.

The logits of a block are turned into probabilities, then into the gradients of both
factors, and are overwritten by the next block. So the memory needed is that of one
block, whatever the batch, and a block is small enough to stay in the processor's cache.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_adrec.losses.hardest import keep_hardest
from torchrec_adrec.losses.known_gradients import LossAndGradients, with_known_gradients
from torchrec_adrec.losses.matches import matches
from torchrec_adrec.losses.mined import join

BLOCK = 1 << 22  # logits held at a time, 16 MB (or `ROUND` rows, if these are more):
# with 4 MB 8192 rows took a quarter more
ROUND = 64  # rows come in multiples: oneDNN makes code anew for every shape it meets


class Candidates(NamedTuple):
    """What a row's softmax runs over.

    Attributes:
        vectors: (N, D).
        correction: (N,), subtracted from the logits of all candidates but the target.
        ids: (N,) int64; another candidate with the target's id is excluded.
        corrects_target: whether it is subtracted from the target's logit too.
        hidden: (N,) bool, candidates that are negatives of no row; None: no candidate.
        hardest: of a row's negatives only so many stay, those with the largest logits
            (and more where logits are equal); None: all of them.
    """

    vectors: Tensor
    correction: Tensor
    ids: Tensor
    corrects_target: bool = False
    hidden: Tensor | None = None
    hardest: int | None = None


def chunked_cross_entropy(
    rows: Tensor,
    candidates: Candidates,
    target: Tensor,
    weights: Tensor,
    excluded: tuple[Tensor, Tensor] | None = None,
    log_odds: Tensor | None = None,
) -> Tensor:
    """The sum over rows i of w_i * -log p_i(target_i), a scalar, where

        p_i = softmax_j(rows_i . vectors_j - [j != target_i] correction_j)

    without the candidates that `Candidates` leaves out. It is differentiable in `rows`
    and `candidates.vectors`. Logits are made in float32 whatever autocast says: in
    bfloat16 a cosine of 1 over a temperature of 0.02 would be off by 0.1. Under
    autocast the two products of the gradient are made in bfloat16: their errors are
    relative to a probability, not to a logit.

    Args:
        rows: (A, D), already divided by the temperature.
        candidates: N of them.
        target: (A,) int64, the candidate that each row should choose.
        weights: (A,).
        excluded: pairs to leave out: (P,) rows, rising, and (P,) candidates.
        log_odds: (A,) a further term of each row's sum (`losses.mined.join`).
    """

    def compute(rows: Tensor, vectors: Tensor, use_bfloat16: bool) -> LossAndGradients:
        return _in_small_blocks(
            rows,
            candidates._replace(vectors=vectors),
            target,
            weights,
            excluded,
            use_bfloat16,
            log_odds,
        )

    return with_known_gradients(compute, rows, candidates.vectors, log_odds)


def _in_small_blocks(
    rows: Tensor,
    candidates: Candidates,
    target: Tensor,
    weights: Tensor,
    excluded: tuple[Tensor, Tensor] | None,
    use_bfloat16: bool,
    log_odds: Tensor | None,
) -> LossAndGradients:
    vectors = candidates.vectors
    count, padding = len(rows), -len(rows) % ROUND
    # Padding has weight 0, so it adds nothing to the loss or to a gradient.
    rows, target, weights = (_pad(x, padding) for x in (rows, target, weights))
    if log_odds is not None:
        log_odds = _pad(log_odds, padding)
    block_rows = max(BLOCK // max(len(vectors), 1) // ROUND, 1) * ROUND
    buffer = rows.new_empty(min(block_rows, len(rows)), len(vectors))
    grad_rows, grad_vectors = torch.empty_like(rows), torch.zeros_like(vectors)
    grad_log_odds = torch.empty_like(weights)
    total = rows.new_zeros(())
    factor = vectors.bfloat16() if use_bfloat16 else vectors
    for first in range(0, len(rows), block_rows):
        block = slice(first, min(first + block_rows, len(rows)))
        logits = buffer[: block.stop - first]
        _write_logits(logits, rows[block], candidates, target[block])
        if excluded is not None:
            _exclude(logits, block, excluded)
        if candidates.hardest is not None:
            keep_hardest(logits, target[block], candidates.hardest)
        term = None if log_odds is None else log_odds[block]
        losses, shares = join(-_softmax(logits, target[block]), term)
        total += losses @ weights[block]
        grad_log_odds[block] = (1 - shares) * weights[block]
        row_weights = (shares * weights[block])[:, None]
        # `_softmax` left the gradient by the logits in their place; a row's weight is
        # applied to the smaller factor of each product, not to the (M, N) matrix.
        grad_logits = logits.to(factor.dtype)
        grad_rows[block] = (grad_logits @ factor) * row_weights
        weighted = (rows[block] * row_weights).to(factor.dtype)
        if use_bfloat16:
            grad_vectors += grad_logits.T @ weighted
        else:
            grad_vectors.addmm_(grad_logits.T, weighted)
    return LossAndGradients(
        total, grad_rows[:count], grad_vectors, grad_log_odds[:count]
    )


def _pad(values: Tensor, padding: int) -> Tensor:
    """The values, followed by `padding` rows of zeros."""
    return torch.cat([values, values.new_zeros(padding, *values.shape[1:])])


def _write_logits(
    out: Tensor, rows: Tensor, candidates: Candidates, target: Tensor
) -> None:
    """Write a block's corrected logits into `out`; an accidental hit becomes -inf."""
    torch.addmm(-candidates.correction, rows, candidates.vectors.T, out=out)
    row = torch.arange(len(out), device=out.device)
    target_logits = out[row, target]
    if not candidates.corrects_target:
        target_logits = target_logits + candidates.correction[target]
    if candidates.hidden is not None:
        out.masked_fill_(candidates.hidden, -torch.inf)
    # The target has its own id too: it is masked with the hits, then written back.
    out[matches(candidates.ids[target], candidates.ids)] = -torch.inf
    out[row, target] = target_logits


def _exclude(logits: Tensor, block: slice, excluded: tuple[Tensor, Tensor]) -> None:
    """Set those of the excluded pairs to -inf that lie in a block of rows."""
    rows, columns = excluded
    bounds = rows.new_tensor([block.start, block.stop])
    first, end = torch.searchsorted(rows, bounds).tolist()
    logits[rows[first:end] - block.start, columns[first:end]] = -torch.inf


def _softmax(logits: Tensor, target: Tensor) -> Tensor:
    """Turn logits in place into the loss's gradient by them: p, less 1 at the target.

    Returns the log-probability of each row's target, (A,).

    log p = z - max - log sum, and 1 / sum is the largest p, at least 1 / N: exact also
    where p itself is 0 in float32. A log_softmax and its exp take half as long again.
    """
    row = torch.arange(len(logits), device=logits.device)
    target_logits = logits[row, target]
    largest = logits.amax(1)
    torch.softmax(logits, 1, out=logits)
    log_probabilities = target_logits - largest + logits.amax(1).log()
    logits[row, target] -= 1
    return log_probabilities
