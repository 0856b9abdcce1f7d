"""A multilayer perceptron; torchrec's has no dropout and ends in an activation."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Stack linear layers with ReLU and dropout between them.

    Args:
        sizes: input, hidden ..., output width; nothing follows the last layer.
        dropout: share of dropped activations.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])
