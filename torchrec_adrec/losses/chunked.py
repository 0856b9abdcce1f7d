"""Softmax cross-entropy against many columns that never holds all its logits, on CPUs.

The logits of a block of rows are made, turned into probabilities, into the gradients of
both factors, and written over by the next block. So memory is one block, whatever the
batch. Blocks are small enough to stay in the processor's cache.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_adrec.losses.known_gradients import Softmax, with_known_gradients
from torchrec_adrec.losses.matches import matches

BLOCK = 1 << 22  # logits held at a time, 16 MB (or `ROUND` rows, if these are more):
# with 4 MB 8192 rows took a quarter more
ROUND = 64  # rows come in multiples: oneDNN makes code anew for every shape it meets


class Candidates(NamedTuple):
    """What a row's logits run over.

    Attributes:
        vectors: (N, D).
        correction: (N,), subtracted from the logits of all but the row's own column.
        ids: (N,) int64; a column with the id of the row's own one is left out.
    """

    vectors: Tensor
    correction: Tensor
    ids: Tensor


def chunked_cross_entropy(
    rows: Tensor,
    columns: Candidates,
    own: Tensor,
    weights: Tensor,
    masked: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """sum_i w_i * -log softmax_j(rows_i . vectors_j - [j != own_i] correction_j) at
    j = own_i, a scalar.

    Differentiable in `rows` and `columns.vectors`. Logits are made in float32 whatever
    autocast says: in bfloat16 a cosine of 1 over a temperature of .02 would be off by
    .1. Under autocast the two products of the gradient are made in bfloat16: their
    errors are relative to a probability, not to a logit.

    Args:
        rows: (A, D), already divided by the temperature.
        own: (A,) int64, the column that is right.
        weights: (A,).
        masked: (P,) rows in rising order and (P,) columns, pairs to leave out.
    """

    def find(rows: Tensor, vectors: Tensor, low: bool) -> Softmax:
        return _in_small_blocks(rows, vectors, columns, own, weights, masked, low)

    return with_known_gradients(find, rows, columns.vectors)


def _in_small_blocks(
    rows: Tensor,
    vectors: Tensor,
    columns: Candidates,
    own: Tensor,
    weights: Tensor,
    masked: tuple[Tensor, Tensor] | None,
    low: bool,
) -> Softmax:
    count, more = len(rows), -len(rows) % ROUND
    rows, own, weights = _pad(rows, more), _pad(own, more), _pad(weights, more)
    block = max(BLOCK // max(len(vectors), 1) // ROUND, 1) * ROUND
    room = rows.new_empty(min(block, len(rows)), len(vectors))
    grad_rows, grad_vectors = torch.empty_like(rows), torch.zeros_like(vectors)
    total = rows.new_zeros(())
    narrow = vectors.bfloat16() if low else vectors
    for first in range(0, len(rows), block):
        at = slice(first, min(first + block, len(rows)))
        logits = room[: at.stop - first]
        _logits(logits, rows[at], vectors, columns, own[at])
        if masked is not None:
            _leave_out(logits, at, masked)
        total -= _softmax(logits, own[at]) @ weights[at]
        slope = logits.to(narrow.dtype)
        grad_rows[at] = (slope @ narrow) * weights[at, None]
        weighted = (rows[at] * weights[at, None]).to(narrow.dtype)
        if low:
            grad_vectors += slope.T @ weighted
        else:
            grad_vectors.addmm_(slope.T, weighted)
    return Softmax(total, grad_rows[:count], grad_vectors)


def _pad(values: Tensor, more: int) -> Tensor:
    """Further rows of zeros; of weight 0, so that they count for nothing."""
    return torch.cat([values, values.new_zeros(more, *values.shape[1:])])


def _logits(
    out: Tensor, rows: Tensor, vectors: Tensor, columns: Candidates, own: Tensor
) -> None:
    """Corrected logits of a block into `out`; a hit by accident is -inf."""
    torch.addmm(-columns.correction, rows, vectors.T, out=out)
    at = torch.arange(len(out), device=out.device)
    right = out[at, own] + columns.correction[own]
    out[matches(columns.ids[own], columns.ids)] = -torch.inf
    out[at, own] = right


def _leave_out(logits: Tensor, at: slice, masked: tuple[Tensor, Tensor]) -> None:
    rows, columns = masked
    first, end = torch.searchsorted(rows, rows.new_tensor([at.start, at.stop])).tolist()
    logits[rows[first:end] - at.start, columns[first:end]] = -torch.inf


def _softmax(logits: Tensor, own: Tensor) -> Tensor:
    """Logits become the loss's slope by them in place: probabilities, less 1 at the
    right columns. Returns these columns' log-probabilities, (A,).

    log p = z - max - log sum, and 1 / sum is the largest p, at least 1 / N: exact also
    where p itself is 0 in float32. A log_softmax and its exp take half as long again.
    """
    at = torch.arange(len(logits), device=logits.device)
    right = logits[at, own]
    top = logits.amax(1)
    torch.softmax(logits, 1, out=logits)
    found = right - top + logits.amax(1).log()
    logits[at, own] -= 1
    return found
