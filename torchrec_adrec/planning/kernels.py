"""Count what a GPU computes in a step beside its tables: every kernel with its work.

The towers' heads are counted by running them, forward and backward, on fake tensors
that have shapes and no numbers. The softmax over the batch's ads runs differently on a
GPU and on a CPU, so its kernels are written out.

Shape letters: A clicked rows of a rank, N ads of all ranks, D columns.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from torchrec_adrec.losses.device_blocks import BLOCK
from torchrec_adrec.models.tower import BiasHead, TowerHead
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.modules.history import HistoryEncoder

FLOAT, HALF = 4, 2
# Operations of the losses beside the blocks, forward and backward (the click's
# cross-entropy, both means, the split of the factors), and of a block beside its three
# products: counted from our own code on 2026-11-26.
LOSS_KERNELS, BLOCK_KERNELS = 85, 5
ADAM_KERNELS = 3  # the fused kernel, its step count, its learning rate
ADAM_BYTES = 7 * FLOAT  # a parameter, its gradient and two moments, three written back
NOTHING = frozenset(  # to do for the device, though they are operations
    (
        *("_unsafe_view", "alias", "detach", "device"),
        *("empty", "empty_like", "empty_strided", "new_empty"),
    )
)


@dataclass(frozen=True)
class Kernel:
    """The work of one launch.

    Attributes:
        operations: floating point operations of a matrix product, else 0.
        bytes: read and written.
        half: whether a product is of fp16 numbers, whatever the others are.
    """

    operations: float
    bytes: float
    half: bool = False


class Counted(TorchDispatchMode):
    """Collects what a device would launch; views and empty memory cost it nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and count it."""
        out = func(*args, **(kwargs or {}))
        if func.is_view or func._schema.name.split("::")[1] in NOTHING:
            return out
        product = flop_registry.get(func._overloadpacket)
        work = float(product(*args, **(kwargs or {}), out_val=out)) if product else 0.0
        leaves = tree_leaves((args, kwargs, out))
        # What an operation writes in place is argument and result: read and written.
        moved = sum(x.numel() * x.element_size() for x in leaves if torch.is_tensor(x))
        self.kernels.append(Kernel(work, moved))
        return out


def heads(model: TwoTower, rows: int, low: bool) -> list[Kernel]:
    """Count both towers' dense parts, the click's logit, and their backward pass.

    Args:
        model: it stays as it is; copies of its parts are run.
        rows: of one rank.
        low: products in bfloat16.
    """
    parts: list[Any] = [model.user_tower.head, model.ad_tower.head]
    if model.user_bias is not None and model.ad_bias is not None:
        parts += [model.user_bias.head, model.ad_bias.head]
    *dense_parts, click = (copy.deepcopy(part) for part in (*parts, model.calibration))
    counted = Counted()
    with FakeTensorMode():
        for part in (*dense_parts, click):
            _make_fake(part)
        inputs = [
            torch.empty(rows, part.width, requires_grad=True) for part in dense_parts
        ]
        weights = [p for part in (*dense_parts, click) for p in part.parameters()]
        with torch.autocast("cpu", torch.bfloat16, enabled=low), counted:
            outs = [_head(p, x) for p, x in zip(dense_parts, inputs, strict=True)]
            outs.append(click(*outs[:2], outs[2:]))
        grads = [torch.empty_like(out) for out in outs]
        with counted:
            torch.autograd.grad(outs, [*inputs, *weights], grads, allow_unused=True)
    if model.user_tower.head.history is None:
        return counted.kernels
    return counted.kernels + _history(model.user_tower.head.history, rows, low)


def _history(encoder: HistoryEncoder, rows: int, low: bool) -> list[Kernel]:
    """Count the encoder of the histories, forward and backward."""
    encoder, counted = copy.deepcopy(encoder), Counted()
    with FakeTensorMode():
        _make_fake(encoder)
        vectors = torch.empty(rows, encoder.width, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=low), counted:
            out = encoder(vectors)
        inputs = [vectors, *encoder.parameters()]
        with counted:
            torch.autograd.grad(out, inputs, torch.empty_like(out), allow_unused=True)
    return counted.kernels


def _head(part: nn.Module, joined: Tensor) -> Tensor:
    """Run a dense part from where its inputs are concatenated."""
    if isinstance(part, TowerHead):
        return part.encode(joined)
    assert isinstance(part, BiasHead)
    out: Tensor = part.mlp(joined)
    return out.float()[:, 0]


def _make_fake(part: nn.Module) -> None:
    """Give a part fake weights, and the dropout of a GPU.

    A GPU's dropout is one kernel, where a CPU takes three.
    """
    for module in part.modules():
        if isinstance(module, nn.Dropout):
            module.forward = partial(_gpu_dropout, module.p)  # type: ignore[method-assign]
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(weight.shape)))


def _gpu_dropout(share: float, values: Tensor) -> Tensor:
    return torch.native_dropout(values, share, True)[0] if share else values


def softmax(anchors: int, ads: int, width: int, low: bool) -> list[Kernel]:
    """Count the losses.

    Logits come from factors that are split in two halves of fp16, which makes one
    product three times as deep; the two products with their slopes are as the config
    says.

    Args:
        anchors: A.
        ads: N.
        width: D.
        low: slopes and their products in bfloat16.
    """
    count = blocks(anchors, ads)
    cells, each = anchors * ads / count, HALF if low else FLOAT
    product = 2 * cells * width
    block = [
        Kernel(3 * product, cells * FLOAT, half=True),
        Kernel(0, cells * (2 * FLOAT + each)),  # reads the logits twice
        Kernel(product, cells * each),
        Kernel(product, cells * each),
        *[Kernel(0, ads * width * FLOAT)] * (BLOCK_KERNELS - 1),
    ]
    return [*[Kernel(0, ads * FLOAT)] * LOSS_KERNELS, *block * count]


def blocks(anchors: int, ads: int) -> int:
    """Count the blocks in which the softmax is computed."""
    return max(ceil(anchors * ads / BLOCK), 1)


def adam(parameters: int) -> list[Kernel]:
    """Count the fused AdamW of the dense part."""
    return [Kernel(0, parameters * ADAM_BYTES / ADAM_KERNELS)] * ADAM_KERNELS


def milliseconds(
    kernels: Iterable[Kernel],
    peak: float,
    half_peak: float,
    memory: float,
    least: float,
) -> tuple[float, float]:
    """Estimate the milliseconds of all products, and of all other kernels.

    A kernel takes as long as the slowest of what it computes, what it moves, and the
    least that any kernel takes.

    Args:
        kernels: of one step.
        peak: operations/s of products.
        half_peak: operations/s of products of fp16.
        memory: bytes/s.
        least: s.
    """
    products = others = 0.0
    for kernel in kernels:
        fastest = half_peak if kernel.half else peak
        spent = max(kernel.operations / fastest, kernel.bytes / memory, least) * 1e3
        if kernel.operations:
            products += spent
        else:
            others += spent
    return products, others
