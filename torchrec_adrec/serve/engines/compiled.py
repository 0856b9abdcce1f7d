"""The head through torch.compile: fewer passes over memory, half a minute at start."""

import copy

from torch import nn

BACKEND = "inductor"


def compile_head(head: nn.Module, labels: int) -> nn.Module:
    """Compile a copy of the head; it needs a C++ compiler.

    One graph serves any number of ads, so that a smaller answer of the index makes no
    request wait for the compiler.
    """
    module = copy.deepcopy(head)
    module.compile(backend=BACKEND, dynamic=True)
    return module
