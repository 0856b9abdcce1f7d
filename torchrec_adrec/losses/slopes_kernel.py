"""The slopes of a block of the softmax in one Triton kernel: see `losses.slopes`.

Every program owns one row. It walks over the row's columns twice: first for the largest
logit and the sum of exponentials, found together (Milakov and Gimelshein, Online
normalizer calculation for softmax, 2018, arXiv:1805.02867), then for the slopes. So the
logits are read twice and the slopes written once; no mask and no probability is ever
kept.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchrec_adrec.losses.block import Block

COLUMNS = 2048  # of one row at a time: 8 warps hold 8 logits a thread
LOWEST = tl.constexpr(-1e38)  # below any logit, and still finite: -inf - -inf is NaN


def slopes_by_kernel(block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `losses.slopes.slopes`."""
    rows, columns = block.products.shape
    out = torch.empty(rows, columns, dtype=dtype, device=block.products.device)
    log_p = block.products.new_empty(rows)
    excluded = block.excluded
    _slopes[(rows,)](
        block.products,
        block.scale,
        block.correction,
        block.ids,
        block.own,
        block.weights,
        block.ids if excluded is None else excluded.view(torch.uint8),
        out,
        log_p,
        columns,
        HAS_LEFT_OUT=excluded is not None,
        WIDTH=min(COLUMNS, triton.next_power_of_2(columns)),
        num_warps=8,
    )
    return out, log_p


@triton.jit  # type: ignore[untyped-decorator]
def _logits(  # type: ignore[no-untyped-def]
    products,
    correction,
    ids,
    excluded,
    row,
    own,
    own_id,
    scale,
    at,
    columns,
    HAS_LEFT_OUT: tl.constexpr,  # noqa: N803
):
    """The logits of one row at some columns; left out and behind the end: -inf."""
    inside = at < columns
    is_own = at == own
    logit = tl.load(products + row * columns + at, mask=inside, other=0.0) * scale
    bias = tl.load(correction + at, mask=inside, other=0.0)
    logit = tl.where(is_own, logit, logit - bias)
    out = tl.load(ids + at, mask=inside, other=0) == own_id
    if HAS_LEFT_OUT:
        out = out | (tl.load(excluded + row * columns + at, mask=inside, other=0) != 0)
    logit = tl.where(out & (is_own == 0), float("-inf"), logit)
    return tl.where(inside, logit, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _slopes(  # type: ignore[no-untyped-def]
    products,
    scale,
    correction,
    ids,
    own,
    weights,
    excluded,
    out,
    log_p,
    columns,
    HAS_LEFT_OUT: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)  # rows * columns exceeds 32 bits
    own_column = tl.load(own + row)
    own_id = tl.load(ids + own_column)
    weight = tl.load(weights + row)
    factor = tl.load(scale)
    tops = tl.full([WIDTH], LOWEST, tl.float32)
    sums = tl.zeros([WIDTH], tl.float32)
    for first in range(0, columns, WIDTH):
        at = first + tl.arange(0, WIDTH)
        logit = _logits(
            products,
            correction,
            ids,
            excluded,
            row,
            own_column,
            own_id,
            factor,
            at,
            columns,
            HAS_LEFT_OUT,
        )
        higher = tl.maximum(tops, logit)
        sums = sums * tl.exp(tops - higher) + tl.exp(logit - higher)
        tops = higher
    top = tl.max(tops, axis=0)
    total = tl.sum(sums * tl.exp(tops - top), axis=0)
    right = tl.load(products + row * columns + own_column) * factor
    tl.store(log_p + row, right - top - tl.log(total))
    for first in range(0, columns, WIDTH):
        at = first + tl.arange(0, WIDTH)
        logit = _logits(
            products,
            correction,
            ids,
            excluded,
            row,
            own_column,
            own_id,
            factor,
            at,
            columns,
            HAS_LEFT_OUT,
        )
        slope = tl.exp(logit - top) / total - tl.where(at == own_column, 1.0, 0.0)
        place = out + row * columns + at
        slope = (slope * weight).to(out.dtype.element_ty)
        tl.store(place, slope, mask=at < columns)
