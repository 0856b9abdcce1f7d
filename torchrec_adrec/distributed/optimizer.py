"""Row-wise Adagrad inside backward for the tables, AdamW for every other parameter."""

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_adrec.train_config import OptimizerConfig


def fuse_table_optimizer(model: nn.Module, config: OptimizerConfig) -> None:
    """Give every table its optimizer. Call before the model is sharded.

    Source of row-wise Adagrad: Naumov et al., DLRM, 2019 (arXiv:1906.00091).
    """
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            apply_optimizer_in_backward(
                RowWiseAdagrad, module.parameters(), {"lr": config.tables_lr}
            )


def build_optimizer(
    model: DistributedModelParallel, config: OptimizerConfig
) -> CombinedOptimizer:
    """The tables' fused optimizer and AdamW for the rest, as one."""
    rest = dict(in_backward_optimizer_filter(model.named_parameters()))
    dense = KeyedOptimizerWrapper(
        rest,
        lambda parameters: torch.optim.AdamW(
            parameters, lr=config.dense_lr, weight_decay=config.weight_decay
        ),
    )
    _make_state(dense)
    return CombinedOptimizer([model.fused_optimizer, dense])


def _make_state(dense: KeyedOptimizerWrapper) -> None:
    """An Adam that has not stepped has no state, and a checkpoint would silently not be
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
