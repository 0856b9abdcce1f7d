"""All of a step between the looked-up vectors and the loss, which a GPU may run as one
graph.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.tasks.guard import Guard


class Outputs(NamedTuple):
    """What a task returns beside the loss, detached: the pipeline passes on only this.

    Attributes:
        report: (3,) of training: the global loss, the same on every rank; how many
            ranks were asked to stop; 1 if a loss was not finite, now or before.
        logits, labels: (B, T).
        weights: (B,).
        ads: (N, D) ad vectors of the towers; of the ranker (0, 0).
    """

    report: Tensor
    logits: Tensor
    labels: Tensor
    weights: Tensor
    ads: Tensor

    @property
    def loss(self) -> Tensor:
        """(), the global loss."""
        return self.report[0]


class Computed(NamedTuple):
    """What the dense part makes of looked-up vectors.

    Attributes:
        loss: (), this rank's share of the global one.
        logits: (B, T).
        labels: (B, T), to be compared with the logits.
        ads: (N, D) or (0, 0), see `Outputs`.
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor
    ads: Tensor


Compute = Callable[[Sequence[Tensor], Batch], Computed]
Run = Callable[[Sequence[Tensor], Batch], tuple[Tensor, Outputs]]


class AfterLookup(nn.Module):
    """Computes the loss from looked-up vectors; owns no parameter.

    TorchRec's pipeline traces a model to find its sharded modules. It takes this module
    as a leaf, so what happens inside may depend on values, and may be a captured graph.

    Attributes:
        run: does the work; a trainer on a GPU puts a captured graph in its place.
    """

    run: Run

    def __init__(self, model: Any, compute: Compute, guard: Guard) -> None:
        super().__init__()
        # In a tuple: registered here too, they would stand twice in checkpoints.
        self._parts = (model, compute, guard)
        self.run = self.run_eagerly

    def forward(self, looked_up: Any, batch: Batch) -> tuple[Tensor, Outputs]:
        """Turn the `KeyedTensor`s of `model.look_up` into loss and outputs."""
        return self.run(self._parts[0].regroup(looked_up), batch)

    def run_eagerly(
        self, vectors: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Outputs]:
        """Compute loss and outputs, operation by operation.

        Args:
            vectors: (B, E) each, in the order of features.
            batch: whose ids were looked up.
        """
        _, compute, guard = self._parts
        if not self.training:
            no_report = vectors[0].new_zeros(3)
            return _outputs(compute(vectors, batch), batch, no_report)
        guarded = [guard.guard_gradient(v) for v in vectors]
        computed = compute(guarded, batch)
        return _outputs(computed, batch, guard.check_loss(computed.loss))


def _outputs(
    computed: Computed, batch: Batch, report: Tensor
) -> tuple[Tensor, Outputs]:
    logits, ads = computed.logits.detach(), computed.ads.detach()
    return computed.loss, Outputs(report, logits, computed.labels, batch.weights, ads)
