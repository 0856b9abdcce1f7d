"""All of a step between the looked-up vectors and the loss: a GPU's one graph."""

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
        ads: (N, D) or (0, 0), see `Outputs`.
    """

    loss: Tensor
    logits: Tensor
    ads: Tensor


Compute = Callable[[Sequence[Tensor], Batch], Computed]
Run = Callable[[Sequence[Tensor], Batch], tuple[Tensor, Outputs]]


class AfterLookup(nn.Module):
    """All of a step between the looked-up vectors and the loss; owns no parameter.

    Attributes:
        run: does it; a trainer on a GPU puts a captured graph in its place.
    """

    run: Run

    def __init__(self, model: Any, compute: Compute, guard: Guard) -> None:
        super().__init__()
        # In a tuple: registered here too, they would stand twice in checkpoints.
        self._parts = (model, compute, guard)
        self.run = self.guarded

    def forward(self, looked_up: Any, batch: Batch) -> tuple[Tensor, Outputs]:
        """The `KeyedTensor`s of `model.look_up` -> loss, outputs."""
        return self.run(self._parts[0].regroup(looked_up), batch)

    def guarded(
        self, vectors: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Outputs]:
        """Vectors (B, E) in the order of features -> loss, outputs."""
        _, compute, guard = self._parts
        if not self.training:
            return self._outputs(
                compute(vectors, batch), batch, vectors[0].new_zeros(3)
            )
        found = compute([guard.pass_on(v) for v in vectors], batch)
        return self._outputs(found, batch, guard.look(found.loss))

    def _outputs(
        self, found: Computed, batch: Batch, report: Tensor
    ) -> tuple[Tensor, Outputs]:
        logits = found.logits.detach()
        labels = batch.labels[:, : logits.shape[1]]
        ads = found.ads.detach()
        return found.loss, Outputs(report, logits, labels, batch.weights, ads)
