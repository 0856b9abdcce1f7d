"""Products on tensor cores that are as exact as those of float32.

A logit is a product of unit vectors over a small temperature: in bfloat16 a cosine of 1
over 0.02 is off by 0.16, in TF32 by 0.02. Tensor cores are fast only for such short
numbers, so each factor is written as the sum of two short ones:

    large = the factor rounded to float16         (11 of the 24 bits of a float32)
    small = float16(factor - large)               (11 of the bits that were lost)

    a b = a_large b_large + a_large b_small + a_small b_large + a_small b_small

The last product is about 2^-22 of the first one and is left out. The other three are
made as one product that is three times as deep, (a_large, a_large, a_small) times
(b_large, b_small, b_large), so that they are summed in float32 inside the tensor core.
At the temperature of 0.02 the error is 6e-6; that of a float32 product is 1.8e-5.

Source of the split: Markidis et al., NVIDIA tensor core programmability, 2018
(arXiv:1803.04014).
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Factors are scaled to 2^12 at most. Float16 reaches from 2^-24 to 2^16: the products
# are summed in float32 and nothing overflows, and the small halves, 2^-11 times the
# large ones, keep their bits.
LARGEST_EXPONENT = 12.0


class Halves(NamedTuple):
    """A factor as the sum of two float16 numbers.

    Attributes:
        large, small: (rows, D) float16, whose sum is the factor times 1 / scale.
        scale: () float32.
    """

    large: Tensor
    small: Tensor
    scale: Tensor


def halves(factor: Tensor) -> Halves:
    """Split a float32 factor (rows, D); a number that is not finite stays so."""
    largest = factor.abs().amax().clamp_min(1e-30)
    # A power of two: multiplying and dividing by it changes no bit of a number.
    scale = torch.exp2(torch.ceil(torch.log2(largest)) - LARGEST_EXPONENT)
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
    """The product a @ b as float32, whatever the type of the factors."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())
