"""The optimizers: row-wise Adagrad inside backward for tables, AdamW for the rest."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import (
    CombinedOptimizer,
    KeyedOptimizer,
    KeyedOptimizerWrapper,
)
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_adrec.config.optimizer import OptimizerConfig
from torchrec_adrec.distributed.constraints import COLLECTIONS


def fuse_table_optimizer(model: nn.Module, config: OptimizerConfig) -> None:
    """Give every table its optimizer. Call before the model is sharded.

    Source of row-wise Adagrad: Naumov et al., DLRM, 2019 (arXiv:1906.00091).
    """
    for module in model.modules():
        if isinstance(module, COLLECTIONS):
            apply_optimizer_in_backward(
                RowWiseAdagrad, module.parameters(), {"lr": config.tables_lr}
            )


def build_optimizer(
    model: DistributedModelParallel, config: OptimizerConfig, bad: Tensor
) -> "StepOptimizer":
    """Make one optimizer of the tables' fused one and of AdamW for the rest.

    Args:
        model: sharded, its tables with the optimizer of `fuse_table_optimizer`.
        config: learning rates, weight decay, clipping and accumulation.
        bad: () float32, the guard's note: 1 makes AdamW skip its steps.
    """
    rest = dict(in_backward_optimizer_filter(model.named_parameters()))
    dense = KeyedOptimizerWrapper(
        rest, lambda parameters: _guarded_adamw(parameters, config, bad)
    )
    _make_state(dense)
    return StepOptimizer(model.fused_optimizer, dense, config)


def _guarded_adamw(parameters: Any, config: OptimizerConfig, bad: Tensor) -> Any:
    adamw = torch.optim.AdamW(
        parameters, lr=config.dense_lr, weight_decay=config.weight_decay, fused=True
    )
    # What the fused kernels of torch read when a gradient scaler has met an infinity.
    adamw.found_inf = bad  # type: ignore[attr-defined]
    return adamw


class StepOptimizer(CombinedOptimizer):  # type: ignore[misc]
    """Both optimizers as one, with learning rates, accumulation and clipping.

    What a step does follows from its number alone, so nothing of it is saved: call
    `prepare_step` before every step.
    """

    def __init__(
        self, tables: KeyedOptimizer, dense: KeyedOptimizer, config: OptimizerConfig
    ) -> None:
        if config.clip_norm is not None:
            dense = GradientClippingOptimizer(
                dense, GradientClipping.NORM, config.clip_norm
            )
        super().__init__([tables, dense])
        self.tables, self.dense, self.config = tables, dense, config
        self.prepare_step(1, 1)

    def prepare_step(self, step: int, steps: int) -> None:
        """Set learning rates and accumulation for step `step` (from 1) of `steps`."""
        self._accumulated = (step - 1) % self.config.accumulate + 1
        self._is_first = self._accumulated == 1
        # The last step updates with what there is: no further one would complete it.
        self._updates = step == steps or self._accumulated == self.config.accumulate
        share = rate(step, steps, self.config)
        for optimizer, full_rate in (
            (self.tables, self.config.tables_lr),
            (self.dense, self.config.dense_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = full_rate * share

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clear the gradients that were used up."""
        # For tables, which have no gradients, this hands the new rate to the kernel.
        self.tables.zero_grad(set_to_none)
        if self._is_first:
            self.dense.zero_grad(set_to_none=True)  # nothing to fill with zeros

    def step(self, closure: Any = None) -> None:
        """Update the dense part, if its gradients are complete."""
        if not self._updates:
            return
        if self._accumulated > 1:
            parameters = self.dense.params.values()
            grads = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_div_(grads, self._accumulated)
        self.dense.step()


def rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the full learning rate at a step: it rises, then falls.

    Args:
        step: from 1.
        steps: the last one.
        config: the length of the rise, and how it falls.
    """
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    if config.decay == "none":
        return 1.0
    remaining = (steps - step + 1) / max(steps - config.warmup_steps, 1)
    if config.decay == "linear":
        return remaining
    return (1 - math.cos(math.pi * remaining)) / 2


def _make_state(dense: KeyedOptimizerWrapper) -> None:
    """Let the dense optimizer have a state before its first step.

    An Adam that has not stepped has none, and a checkpoint would silently not be
    restored into it. `init_state` makes it by a step on zero gradients; that step must
    neither decay the weights nor count in the bias correction.
    """
    rates = [group["lr"] for group in dense.param_groups]
    for group in dense.param_groups:
        group["lr"] = 0.0
    dense.init_state({})
    for group, rate in zip(dense.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in dense.state.values():
        state["step"].zero_()
