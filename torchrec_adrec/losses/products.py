"""Products on tensor cores that are as exact as float32 ones.

A logit is a product of unit vectors over a small temperature: in bfloat16 a cosine of 1
over .02 is off by .16, in TF32 by .02. Each factor is therefore split in two halves of
float16, large and small (11 + 11 bits of the 24 that float32 has), and the three
products that matter are made as one, three times as deep: the error at the temperature
of .02 is 6e-6, a float32 product's is 1.8e-5.

Source of the split: Markidis et al., NVIDIA tensor core programmability, 2018
(arXiv:1803.04014).
"""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 12.0  # factors are scaled to 2^12 at most: of float16's range (2^-24 to 2^16)
# the small halves then have enough, and nothing overflows


class Halves(NamedTuple):
    """A factor in two halves of float16.

    Attributes:
        large, small: (rows, D) float16, whose sum is the factor times 1 / scale.
        scale: () float32.
    """

    large: Tensor
    small: Tensor
    scale: Tensor


def halves(factor: Tensor) -> Halves:
    """Split a float32 factor (rows, D); what is not finite stays so."""
    largest = factor.abs().amax().clamp_min(1e-30)
    scale = torch.exp2(torch.ceil(torch.log2(largest)) - LARGEST)
    scaled = factor / scale
    large = scaled.half()
    return Halves(large, (scaled - large).half(), scale)


def as_left(factor: Halves) -> Tensor:
    """(rows, 3 D), to be multiplied by `as_right` of the other factor."""
    return torch.cat([factor.large, factor.large, factor.small], dim=1)


def as_right(factor: Halves) -> Tensor:
    """(rows, 3 D): large * large + large * small + small * large."""
    return torch.cat([factor.large, factor.small, factor.large], dim=1)


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with a float32 result, whatever the factors are."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())
