"""How far two right results may lie apart on this machine: measured, never assumed.

The same mathematics with its rows in another order adds up other sums, and the largest
difference that this makes is the machine's rounding noise. A right result lies within
MULTIPLE times the noise. A planted fault must lie beyond FAULT times the noise, or the
bound would not find it. `pytest -s` prints the noise and all distances.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrec_adrec.batch import Batch
from torchrec_adrec.data.loader.parquet import StepRows
from torchrec_adrec.training.batch_source import BatchSource

MULTIPLE, FAULT = 10, 30
ORDERS = (1, 2, 3, 4)
"""Seeds of the orders of rows that the noise is the largest difference of."""

Results = Mapping[str, Mapping[str, Tensor]]
"""What a run ends with: kind ("weights", "losses") -> name -> values."""


def reorder(source: BatchSource, seed: int) -> None:
    """Let a trainer's source, of one rank, turn the order of every step's rows."""
    feed, collate = source.feed, source.feed._collate

    def reordered(step: int, rows: StepRows, *memory_and_counts: Any) -> Batch:
        places = np.random.default_rng([seed, step]).permutation(len(rows.weights))
        columns = {name: column[places] for name, column in rows.columns.items()}
        weights = rows.weights[places]
        turned = replace(rows, columns=columns, weights=weights)
        return collate(step, turned, *memory_and_counts)

    object.__setattr__(feed, "_collate", reordered)  # it is frozen


def differences(one: Results, other: Results, kind: str) -> dict[str, float]:
    """The largest difference in every tensor of a kind; NaN if anything is NaN."""
    assert one[kind].keys() == other[kind].keys()
    changes = {}
    for name, value in one[kind].items():
        assert value.shape == other[kind][name].shape, name
        change = value.detach().double() - other[kind][name].detach().double()
        if change.numel():  # a side without numbers has an empty parameter for them
            changes[name] = change.abs().max().item()
    return changes


def largest(values: Mapping[str, float]) -> float:
    """NaN if one is NaN, which `max` might pass over."""
    return torch.tensor(list(values.values()), dtype=torch.float64).max().item()


class Rounding:
    """A right result, and how far rounding alone leads away from it.

    Args:
        name: of the setting; printed.
        right: one rank's result.
        reordered: the same with the rows of every step in other orders.
    """

    def __init__(self, name: str, right: Results, *reordered: Results) -> None:
        self.name, self.right, self.noise = name, right, {}
        for kind, tensors in right.items():
            apart = [differences(right, other, kind) for other in reordered]
            distances = [largest(changes) for changes in apart]
            # Never less than one float32 step of the largest value: equal sums by
            # chance are no proof of a machine without rounding.
            top = max(float(v.abs().max()) for v in tensors.values() if v.numel())
            step = torch.finfo(torch.float32).eps * top
            # torch's maximum and not Python's: a NaN stays.
            self.noise[kind] = torch.tensor([step, *distances]).max().item()
        shown = ", ".join(f"{kind} {noise:.2g}" for kind, noise in self.noise.items())
        print(f"\n{name}: noise here: {shown}; allowed: {MULTIPLE} times")

    def holds(self, name: str, actual: Results) -> None:
        """Fail unless a result differs by rounding alone."""
        times = self._times(name, actual)
        for kind, value in times.items():
            apart = differences(self.right, actual, kind)
            worst = max(apart, key=lambda name: apart[name])
            assert value <= MULTIPLE, (
                f"{self.name}, {name}: {kind} differ by {value:.3g} times the noise of"
                f" this machine, {self.noise[kind]:.2g}, most of all {worst}"
            )

    def sees(self, fault: str, actual: Results) -> None:
        """Fail unless a planted fault lies far beyond the noise."""
        times = self._times(f"planted: {fault}", actual)
        assert max(times.values()) >= FAULT, (
            f"{self.name}: {fault} is {times} times the noise, expected {FAULT}: a test"
            " with this bound would not find it"
        )

    def _times(self, name: str, actual: Results) -> dict[str, float]:
        assert actual.keys() == self.right.keys()
        apart = {
            kind: largest(differences(self.right, actual, kind)) for kind in actual
        }
        times = {kind: apart[kind] / self.noise[kind] for kind in apart}
        shown = (
            f"{kind} {apart[kind]:.2g} ({times[kind]:,.1f} times)" for kind in apart
        )
        print(f"  {name}: {', '.join(shown)}")
        return times
