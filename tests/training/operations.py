"""Counts the operations of a training step, without a GPU.

On a GPU each is a launch, which costs the host more than the work costs the card; and
one whose shape follows from the data makes the host wait. Views and allocations launch
nothing and are not counted. An FBGEMM lookup counts as one, on both sides of a
comparison.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

FREE = ("empty", "new_empty", "detach", "alias", "lift_fresh", "_unsafe_view")
READS = ("_local_scalar_dense", "is_nonzero", "equal", "allclose")
BY_DATA = ("nonzero", "unique", "masked_select", "repeat_interleave", "_unique2")


class Operations(TorchDispatchMode):
    """Counts by part while it is entered.

    Attributes:
        part: what the model is at, `backward` and `optimizer` included.
        counts: operations by part.
        waits: those for which a device would make the host wait, with their part.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "rest"
        self.counts: Counter[str] = Counter()
        self.waits: list[str] = []
        self.names: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(self.counts.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.split("::")[1]
        if name.startswith(READS) or name.startswith(BY_DATA) or _masks(name, args):
            self.waits.append(f"{name} in {self.part}")
        if not name.startswith(FREE) and not _is_view(func):
            self.counts[self.part] += 1
            self.names[f"{self.part}: {name}"] += 1
        return func(*args, **(kwargs or {}))

    def during(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function in whose calls `part` counts."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            before, self.part = self.part, part
            try:
                return call(*args, **kwargs)
            finally:
                self.part = before

        return counted

    def watch(self, module: nn.Module, part: str) -> None:
        """Let a module's forward pass count as a part."""
        module.forward = self.during(part, module.forward)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    infos = [value.alias_info for value in returns]
    return any(info is not None and not info.is_write for info in infos)


def _masks(name: str, args: Any) -> bool:
    """Whether an index is a mask: how much it takes is in the data."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    kinds = (torch.bool, torch.uint8)
    return any(isinstance(i, Tensor) and i.dtype in kinds for i in args[1])
