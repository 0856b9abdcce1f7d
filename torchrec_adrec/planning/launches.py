"""How often the host calls on the GPU in a step, and what that costs.

On an H200 a launch or a copy took the host about 30 microseconds, so a step of many
small kernels waits for the host and not for the card. The figures that a new
measurement may correct are the constants at the top.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any


@dataclass(frozen=True)
class Calls:
    """How often the host calls in a part of a step.

    Attributes:
        launches: of kernels, graphs and collectives.
        copies: between host and device, or on the device.
    """

    launches: int
    copies: int = 0

    def __mul__(self, times: int) -> "Calls":
        return Calls(self.launches * times, self.copies * times)

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(self.launches + other.launches, self.copies + other.copies)


@dataclass(frozen=True)
class Host:
    """What the calls cost the host.

    The two numbers were fitted to four steps on one H200 (2026-11-26), given as calls:
    milliseconds. Our trainer of that day took 488: 13.7 at batch 2,048, 614: 19 to 22
    at 8,192 and 11,198: 345 at 65,536; a plain TorchRec trainer took 207: 8 to 11. They
    are off by a quarter at most.
    """

    call_ms: float = 0.0305
    step_ms: float = 2.0

    def milliseconds(self, calls: Calls) -> float:
        """Milliseconds of one step with these calls."""
        return self.step_ms + self.call_ms * (calls.launches + calls.copies)


HOST = Host()
# A plain TorchRec trainer launched 177 kernels; 125 of them are its heads, loss and
# Adam. The others are the lookups and updates of two collections.
LOOKUP = Calls(26)
# One collection's ids and vectors between ranks: sorting ids by rank, three
# all-to-alls there, one back and its gradient's. Assumed: never measured on a GPU.
EXCHANGE = Calls(16, 7)
BATCH = Calls(0, 1)  # one buffer
REPORT = Calls(0, 2)  # loss and logits, read a step later
GATHER = Calls(6)  # ads of all ranks, their ids and counts, and the gradient
BUCKET = 25 * 2**20  # bytes of gradients that DDP reduces at once
FLOAT = 4


def calls(
    *, dense_kernels: int, adam_kernels: int, lookups: int, ranks: int, parameters: int
) -> dict[str, Calls]:
    """Count the calls of one step, by part.

    Args:
        dense_kernels: of heads and losses, forward and backward. On one rank they run
            as one graph, with a copy for each lookup's vectors and one for the batch;
            collectives keep them out of a graph on more.
        adam_kernels: of the dense part's optimizer.
        lookups: groups of tables that one kernel looks up.
        ranks: W.
        parameters: of the dense part.
    """
    parts: dict[str, Calls] = {"batch": BATCH, "lookups": LOOKUP * lookups}
    if ranks == 1:
        parts["dense part and loss"] = Calls(1, lookups + 1)
    else:
        all_reduces = Calls(ceil(parameters * FLOAT / BUCKET))
        parts["exchange"] = EXCHANGE * lookups
        parts["dense part and loss"] = Calls(dense_kernels) + GATHER + all_reduces
    parts["optimizer"] = Calls(adam_kernels)
    parts["report"] = REPORT
    return parts


def all_of(parts: dict[str, Calls]) -> Calls:
    """Sum up the calls of all parts."""
    return sum(parts.values(), start=Calls(0))


def lookups(options: Any) -> int:
    """Count the lookups of a plan.

    TorchRec makes one lookup of the tables of a collection that are cut and kept alike.

    Args:
        options: the plan's chosen sharding options.
    """
    return len({(o.module[0], o.sharding_type, o.compute_kernel) for o in options})
