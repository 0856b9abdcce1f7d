"""The head's products in 8-bit integers.

Shape letters: T labels.
"""

import warnings

from torch import nn
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic


def in_int8(head: nn.Module, labels: int) -> nn.Module:
    """Copy the head with integer weights, one scale a row; inputs get theirs per call.

    The layers whose columns are logits stay as they are: they cost nothing, and what
    they round nobody corrects.

    Args:
        head: of a ranker.
        labels: T.
    """
    names = {
        name: per_channel_dynamic_qconfig
        for name, module in head.named_modules()
        if isinstance(module, nn.Linear) and module.out_features > labels
    }
    with warnings.catch_warnings():
        # torch.ao moves to torchao, which has nothing for these layers on CPUs yet.
        warnings.simplefilter("ignore")
        quantized: nn.Module = quantize_dynamic(head, names)
    return quantized
