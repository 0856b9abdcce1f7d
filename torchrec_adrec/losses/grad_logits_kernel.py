"""The gradient by a block's logits in one Triton kernel: see `losses.grad_logits`.

Every program owns one row. It walks over the row's candidates twice: first for the
largest logit and the sum of exponentials, computed together (Milakov and Gimelshein,
Online normalizer calculation for softmax, 2018, arXiv:1805.02867), then for the
gradient. So the logits are read twice and the gradient written once, and no mask and no
probability is ever stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchrec_adrec.losses.block import Block

COLUMNS = 2048  # of one row at a time: 8 warps hold 8 logits a thread
LOWEST = tl.constexpr(-1e38)  # below any logit, and still finite: -inf - -inf is NaN


def grad_logits_by_kernel(block: Block, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`losses.grad_logits.grad_logits` by the kernel."""
    rows, columns = block.products.shape
    out = torch.empty(rows, columns, dtype=dtype, device=block.products.device)
    log_p = block.products.new_empty(rows)
    excluded = block.excluded
    _grad_logits[(rows,)](
        block.products,
        block.scale,
        block.correction,
        block.ids,
        block.target,
        block.weights,
        # A kernel takes no None; without HAS_EXCLUDED this pointer is never read.
        block.ids if excluded is None else excluded.view(torch.uint8),
        out,
        log_p,
        columns,
        HAS_EXCLUDED=excluded is not None,
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
    target,
    target_id,
    scale,
    column,
    columns,
    HAS_EXCLUDED: tl.constexpr,  # noqa: N803
):
    """The logits of one row at some columns; excluded or beyond the end: -inf."""
    inside = column < columns
    is_target = column == target
    logit = tl.load(products + row * columns + column, mask=inside, other=0.0) * scale
    bias = tl.load(correction + column, mask=inside, other=0.0)
    logit = tl.where(is_target, logit, logit - bias)
    hidden = tl.load(ids + column, mask=inside, other=0) == target_id
    if HAS_EXCLUDED:
        flags = tl.load(excluded + row * columns + column, mask=inside, other=0)
        hidden = hidden | (flags != 0)
    logit = tl.where(hidden & (is_target == 0), float("-inf"), logit)
    return tl.where(inside, logit, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _grad_logits(  # type: ignore[no-untyped-def]
    products,
    scale_pointer,
    correction,
    ids,
    targets,
    weights,
    excluded,
    out,
    log_p,
    columns,
    HAS_EXCLUDED: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)  # rows * columns exceeds 32 bits
    target = tl.load(targets + row)
    target_id = tl.load(ids + target)
    weight = tl.load(weights + row)
    scale = tl.load(scale_pointer)
    # One running maximum and sum for each of WIDTH lanes: when a lane meets a larger
    # logit, its sum so far is scaled down to the new maximum.
    lane_max = tl.full([WIDTH], LOWEST, tl.float32)
    lane_sum = tl.zeros([WIDTH], tl.float32)
    for first in range(0, columns, WIDTH):
        column = first + tl.arange(0, WIDTH)
        logit = _logits(
            products,
            correction,
            ids,
            excluded,
            row,
            target,
            target_id,
            scale,
            column,
            columns,
            HAS_EXCLUDED,
        )
        new_max = tl.maximum(lane_max, logit)
        lane_sum = lane_sum * tl.exp(lane_max - new_max) + tl.exp(logit - new_max)
        lane_max = new_max
    largest = tl.max(lane_max, axis=0)
    total = tl.sum(lane_sum * tl.exp(lane_max - largest), axis=0)
    target_logit = tl.load(products + row * columns + target) * scale
    tl.store(log_p + row, target_logit - largest - tl.log(total))
    for first in range(0, columns, WIDTH):
        column = first + tl.arange(0, WIDTH)
        logit = _logits(
            products,
            correction,
            ids,
            excluded,
            row,
            target,
            target_id,
            scale,
            column,
            columns,
            HAS_EXCLUDED,
        )
        probability = tl.exp(logit - largest) / total
        gradient = probability - tl.where(column == target, 1.0, 0.0)
        gradient = (gradient * weight).to(out.dtype.element_ty)
        tl.store(out + row * columns + column, gradient, mask=column < columns)
