"""A step's milliseconds: what runs at the same time, and which part is the limit."""

from dataclasses import dataclass

from torchrec_adrec.planning.launches import HOST, Calls, all_of

# Of a GPU's peak that products reach: a plain trainer's B x B softmax of 65,536 rows,
# 6.6 TFLOP and about 240 GB, took 213 ms on an H200 (fp32, 2026-11-26).
PEAK_SHARE = 0.6
MEMORY_SHARE = 0.8  # of a data sheet's bandwidth: assumed
LEAST_S = 1.5e-6  # that any kernel takes: assumed


@dataclass(frozen=True)
class StepTime:
    """The parts of a step in milliseconds, of the slowest rank.

    Attributes:
        calls: the host's, by part of the step.
        products: matrix products.
        memory: all other kernels of the dense part.
        tables: lookups and updates, as TorchRec estimates them.
        communication: vectors, their gradients, ads, the dense all-reduce.
        copies: the batch, over the bus.
        ids: between ranks.
    """

    calls: dict[str, Calls]
    products: float
    memory: float
    tables: float
    communication: float
    copies: float
    ids: float

    @property
    def host(self) -> float:
        """Milliseconds that the host spends on launches and copies."""
        return HOST.milliseconds(all_of(self.calls))

    @property
    def device(self) -> float:
        """Milliseconds of all kernels and messages, which run one after the other."""
        return self.products + self.memory + self.tables + self.communication

    @property
    def prefetch(self) -> float:
        """Milliseconds of what the pipeline does for the next step meanwhile."""
        return max(self.copies, self.ids)

    @property
    def total(self) -> float:
        """Milliseconds of the step: of what runs at the same time the longest."""
        return max(self.host, self.device, self.prefetch)

    @property
    def limit(self) -> str:
        """The part that is to be made faster first."""
        if self.total == self.host:
            return "the host's launches"
        if self.total == self.prefetch:
            return "copies" if self.copies >= self.ids else "ids between ranks"
        parts = ("products", "memory", "tables", "communication")
        return f"the device, most of it {max(parts, key=lambda p: getattr(self, p))}"
