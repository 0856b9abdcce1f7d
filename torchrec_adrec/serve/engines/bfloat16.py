"""The head's layers in bfloat16, for processors that multiply it faster.

Shape letters: B ads, T labels.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def in_bfloat16(head: nn.Module, labels: int) -> nn.Module:
    """Copy the head to bfloat16, all but the layers whose columns are logits.

    Autocast would do, but it casts weights at every request.

    Args:
        head: of a ranker.
        labels: T.
    """
    converted = copy.deepcopy(head).bfloat16()
    for module in converted.modules():
        if isinstance(module, nn.Linear):
            # A logit of 8 bits would tie candidates that training told apart.
            if module.out_features <= labels:
                module.float()
            module.register_forward_pre_hook(_cast)
    return _Bfloat16(converted)


class _Bfloat16(nn.Module):
    """A head that takes and gives float32."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *inputs: Tensor) -> Tensor:
        """See `RankerHead`."""
        logits: Tensor = self.head(*(x.to(torch.bfloat16) for x in inputs))
        return logits.float()


def _cast(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Bring a layer's input to the type of its weights."""
    (x,) = inputs
    return (x.to(layer.weight.dtype),)
