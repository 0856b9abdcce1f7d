"""The ranker and its loss over all labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.errors import PredictionError
from torchrec_adrec.losses.mean import global_means
from torchrec_adrec.losses.pointwise import click_loss, value_loss
from torchrec_adrec.models.ranker import Ranker
from torchrec_adrec.schema import Label, Schema
from torchrec_adrec.tasks.after_lookup import AfterLookup, Computed, Outputs
from torchrec_adrec.tasks.guard import Guard


def prediction(label: Label, logits: Tensor) -> Tensor:
    """What a logit says: the probability of a binary label, or the expected value.

    Raises:
        PredictionError: one is not finite.
    """
    is_binary = label.kind == "binary"
    values = torch.sigmoid(logits) if is_binary else label.mean * torch.exp(logits)
    wrong = ~(logits.isfinite() & values.isfinite())
    if wrong.any():
        raise PredictionError(
            f"{int(wrong.sum())} of {len(logits)} predictions of {label.name} are not"
            f" finite (one is {values[wrong][0]:g}, of a logit {logits[wrong][0]:g}):"
            " `adrec checkpoint inspect` shows whether the weights are; train again"
        )
    return values


class RankingTask(nn.Module):
    """The sum of the labels' losses, each over the rows that observe it."""

    def __init__(
        self,
        schema: Schema,
        config: RankingConfig,
        embedding_dim: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.model = Ranker(schema, config, embedding_dim, device)
        self.loss = RankingLoss(schema.labels)
        self.guard = Guard()
        self.after_lookup = AfterLookup(self.model, self._compute, self.guard)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss and logits of a batch."""
        looked_up = self.model.look_up(batch.user, batch.ad)
        return self.after_lookup(looked_up, batch)  # type: ignore[no-any-return]

    def _compute(self, vectors: Sequence[Tensor], batch: Batch) -> "Computed":
        logits = self.model.dense(vectors, batch.user.dense, batch.ad.dense)
        loss = self.loss(logits, batch.labels, batch.weights)
        return Computed(loss, logits, logits.new_empty(0, 0))


class RankingLoss(nn.Module):
    """See `losses.pointwise`."""

    def __init__(self, labels: tuple[Label, ...]) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """(B, T) logits and labels -> the sum of the losses; 0 in evaluation."""
        if not self.training:
            return logits.new_zeros(())
        shares = [
            click_loss(logits[:, t], labels[:, t], weights)
            if label.kind == "binary"
            else value_loss(logits[:, t], labels[:, t] / label.mean, weights)
            for t, label in enumerate(self.labels)
        ]
        return global_means(shares).sum()
