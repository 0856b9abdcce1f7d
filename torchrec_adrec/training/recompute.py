"""Attention layers that keep their inputs alone and compute the rest again in backward.

Source: Chen et al., Training deep nets with sublinear memory cost, 2016
(arXiv:1604.06174).
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from torchrec_adrec.modules.attention import OneWayLayer
from torchrec_adrec.modules.history import CausalBlock

# What lies between their inputs and outputs grows with rows * tokens * heads.
LAYERS = (OneWayLayer, CausalBlock)


def recompute_activations(model: nn.Module) -> int:
    """Let all attention layers of a model recompute, in place; returns how many.

    Dropout draws the same mask both times: `checkpoint` restores the generator.
    """
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    for layer in layers:
        layer.forward = partial(  # type: ignore[method-assign]
            checkpoint, layer.forward, use_reentrant=False
        )
    return len(layers)
