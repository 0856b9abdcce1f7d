"""The ranker and its loss over all labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.losses.mean import global_means
from torchrec_adrec.models.rankers.registry import RANKERS, build_ranker
from torchrec_adrec.schema import Label, Schema
from torchrec_adrec.tasks.after_lookup import AfterLookup, Computed, Outputs
from torchrec_adrec.tasks.guard import Guard
from torchrec_adrec.tasks.label_heads import LABEL_HEADS


def warm_starts(config: RankingConfig) -> bool:
    """Tell whether a ranker begins with the tables of the retrieval checkpoint."""
    return RANKERS[config.model].warm_starts and config.tables != "scratch"


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
        self.model = build_ranker(schema, config, embedding_dim, device)
        self.loss = RankingLoss(schema.labels)
        self.guard = Guard()
        self.after_lookup = AfterLookup(self.model, self._compute, self.guard)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss and logits of a batch."""
        looked_up = self.model.look_up(batch.user, batch.ad)
        return self.after_lookup(looked_up, batch)  # type: ignore[no-any-return]

    def _compute(self, vectors: Sequence[Tensor], batch: Batch) -> "Computed":
        members = self.model.members(vectors, batch.user.dense, batch.ad.dense)
        # The mean of the members' losses, and not the loss of their mean: none of them
        # knows of the others, or they would all learn one function in parts.
        loss = self.loss(
            members.flatten(0, 1),
            batch.labels.repeat(len(members), 1),
            batch.weights.repeat(len(members)),
        )
        logits = members.mean(dim=0)
        return Computed(loss, logits, logits.new_empty(0, 0))


class RankingLoss(nn.Module):
    """The sum of each label's loss, by its kind: see `label_heads`."""

    def __init__(self, labels: tuple[Label, ...]) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """(B, T) logits and labels -> the sum of the losses; 0 in evaluation."""
        if not self.training:
            return logits.new_zeros(())
        shares = [
            LABEL_HEADS[label.kind].loss(label, logits[:, t], labels[:, t], weights)
            for t, label in enumerate(self.labels)
        ]
        return global_means(shares).sum()
