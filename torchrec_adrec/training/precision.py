"""Chooses how the dense products are made, by making some and taking the time.

A setting's name promises nothing. On one CPU `medium` is oneDNN's float32 product, 1.1
to 2 times as fast as MKL's; on the next it rounds to bfloat16. It is taken wherever it
is exact, and not only where it is faster today: two runs on one machine must make their
products in the same way. bfloat16 is four times faster where the processor knows it and
a hundred times slower where it does not, so there the time decides.
"""

import logging
import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from torchrec_adrec.errors import ConfigError

# Rows, inputs and outputs of the product that is timed. On a CPU it is that of a layer
# with a large batch: smaller products hide what a step gains or loses.
SHAPES = {"cpu": (4096, 512, 256), "cuda": (4096, 4096, 4096)}
ROUNDS = 15  # of which the fastest counts: other work can only slow one down
AT_MOST_S = 0.5  # for the rounds; bfloat16 is very slow where it is emulated
SLOWER = 2  # times; an exact `medium` that takes so long is not taken
# Relative error of a float32 product; those of TF32 and bfloat16 are 1e-3 and more.
EXACT = 2e-5
WORTH = 1.2  # how much faster bfloat16 must be: it costs conversions elsewhere

log = logging.getLogger(__name__)


class MatmulPrecision(NamedTuple):
    """How products are made; kept in checkpoints, so that a resumed run does the same.

    Attributes:
        setting: of `torch.set_float32_matmul_precision`.
        use_bfloat16: whether they are made in bfloat16.
    """

    setting: str
    use_bfloat16: bool


def choose_precision(requested: str, device: torch.device) -> MatmulPrecision:
    """Find out what is fastest on this device. Collective.

    The first rank measures for all, and once in a process: two runs in one process make
    their products in the same way.

    Args:
        requested: `auto`, `float32`, `tf32` or `bfloat16`.
        device: of this rank.

    Raises:
        ConfigError: `tf32` on a device that has none.
    """
    if requested == "tf32" and device.type != "cuda":
        raise ConfigError(
            "train.precision=tf32 is for NVIDIA GPUs, this device is"
            f" {device.type}; set float32, bfloat16 or auto"
        )
    choice = [MatmulPrecision("highest", False)]
    if dist.get_rank() == 0:
        choice = [_measure(requested, device)]
    dist.broadcast_object_list(choice, 0)
    return choice[0]


@cache
def _measure(requested: str, device: torch.device) -> MatmulPrecision:
    generator = torch.Generator().manual_seed(0)
    rows, inputs, outputs = SHAPES.get(device.type, SHAPES["cuda"])
    a = torch.randn(rows, inputs, generator=generator).to(device)
    b = torch.randn(inputs, outputs, generator=generator).to(device)
    exact = (a.double() @ b.double()).float()
    seconds = {"highest": _seconds(a, b, "highest")}
    if _error(a, b, exact, "medium") <= EXACT:
        seconds["medium"] = _seconds(a, b, "medium")
    slow = seconds["highest"] * SLOWER
    best = "medium" if seconds.get("medium", slow) < slow else "highest"
    if requested == "tf32":
        seconds["high"], best = _seconds(a, b, "high"), "high"
        faster = seconds["highest"] / seconds["high"]
        log.info("products in TF32; measured here, %.2g times float32's speed", faster)
        return MatmulPrecision("high", False)
    faster = seconds[best] / _seconds(a.bfloat16(), b.bfloat16(), best)
    use_bfloat16 = requested == "bfloat16" or (requested == "auto" and faster >= WORTH)
    log.info(
        "products in %s; measured here, bfloat16 is %.2g times as fast as float32 (%s)",
        "bfloat16" if use_bfloat16 else "float32",
        faster,
        best,
    )
    if use_bfloat16 and faster < 1:
        log.warning("train.precision=bfloat16 slows training down here; try auto")
    return MatmulPrecision(best, use_bfloat16)


def _error(a: Tensor, b: Tensor, exact: Tensor, setting: str) -> float:
    torch.set_float32_matmul_precision(setting)
    return float((a @ b - exact).norm() / exact.norm())


def _seconds(a: Tensor, b: Tensor, setting: str) -> float:
    torch.set_float32_matmul_precision(setting)
    seconds: list[float] = []
    while len(seconds) <= ROUNDS and sum(seconds) < AT_MOST_S:
        seconds.append(_time(lambda: a @ b, a.device))
    return min(seconds)


def _time(product: Callable[[], Tensor], device: torch.device) -> float:
    started = time.perf_counter()
    product()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
