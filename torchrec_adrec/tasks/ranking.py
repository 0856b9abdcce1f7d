"""The ranker and its loss over all labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.registry import RANKERS, build_ranker
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.after_lookup import AfterLookup, Computed, Outputs
from torchrec_adrec.tasks.guard import Guard
from torchrec_adrec.tasks.objectives import RankingLoss


def warm_starts(config: RankingConfig) -> bool:
    """Tell whether a ranker begins with the tables of the retrieval checkpoint."""
    return RANKERS[config.model].warm_starts and config.tables != "scratch"


class RankingTask(nn.Module):
    """The ranker, trained on the labels as `RankingLoss` weighs them."""

    def __init__(
        self,
        schema: Schema,
        config: RankingConfig,
        embedding_dim: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.loss = RankingLoss(schema.labels, config)
        self.model = build_ranker(schema, config, embedding_dim, device)
        self.guard = Guard()
        self.after_lookup = AfterLookup(self.model, self._compute, self.guard)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss and logits of a batch."""
        items = batch.items if self.model.reads_items else None
        looked_up = self.model.look_up(batch.user, batch.ad, items)
        return self.after_lookup(looked_up, batch)  # type: ignore[no-any-return]

    def _compute(self, vectors: Sequence[Tensor], batch: Batch) -> Computed:
        members = self.model.members(vectors, batch.user.dense, batch.ad.dense)
        logits = self.model.final_logits(members.mean(dim=0))
        labels = self.loss.completed(batch.labels)
        # The mean of the members' losses, and not the loss of their mean: none of them
        # knows of the others, or they would all learn one function in parts.
        raw, count = members.flatten(0, 1), len(members)
        final = logits if count == 1 else self.model.final_logits(raw)
        weights = batch.weights.repeat(count)
        loss = self.loss(raw, final, labels.repeat(count, 1), weights)
        return Computed(loss, logits, labels, logits.new_empty(0, 0))
