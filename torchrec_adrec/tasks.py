"""Model plus loss: what the train pipeline runs. `forward(batch) -> (loss, outputs)`.

The losses are modules without parameters because the pipeline traces a task down to its
sharded modules; a module that holds none is a leaf and runs as plain Python.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.config import Config
from torchrec_adrec.losses import click_loss, in_batch_softmax, value_loss
from torchrec_adrec.models.ranker import Ranker
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.schema import Label, Schema
from torchrec_adrec.train_config import RankerConfig, TowersConfig


class Outputs(NamedTuple):
    """What a task returns beside the loss, detached: the pipeline passes on only this.

    Attributes:
        loss: scalar; its mean over ranks is the global loss.
        logits, labels: (B, T).
        weights: (B,).
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor
    weights: Tensor


TASKS = ("retrieval", "ranking")


def build_task(
    name: str, schema: Schema, config: Config, device: torch.device | None = None
) -> "RetrievalTask | RankingTask":
    """The task of that name, its tables on `device` (meta: nowhere yet)."""
    if name == "retrieval":
        return RetrievalTask(schema, config.towers, device)
    return RankingTask(schema, config.ranker, config.towers.embedding_dim, device)


def prediction(label: Label, logits: Tensor) -> Tensor:
    """What a logit says: the probability of a binary label, or the expected value."""
    if label.kind == "binary":
        return torch.sigmoid(logits)
    return label.mean * torch.exp(logits)


class RetrievalTask(nn.Module):
    """alpha * click cross-entropy + (1 - alpha) * in-batch softmax."""

    def __init__(
        self, schema: Schema, config: TowersConfig, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.model = TwoTower(schema, config, device)
        self.loss = RetrievalLoss(config.alpha, config.temperature)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss and click logits of a batch. The first label is the click."""
        user, ad, logits = self.model(batch.user, batch.ad)
        return self.loss(  # type: ignore[no-any-return]
            user, ad, logits, batch.labels, batch.weights, batch.ad_ids, batch.log_q
        )


class RetrievalLoss(nn.Module):
    """See `losses.click_loss` and `losses.in_batch_softmax`."""

    def __init__(self, alpha: float, temperature: float) -> None:
        super().__init__()
        self.alpha, self.temperature = alpha, temperature

    def forward(
        self,
        user: Tensor,
        ad: Tensor,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        ad_ids: Tensor,
        log_q: Tensor,
    ) -> tuple[Tensor, Outputs]:
        """The joint loss; evaluation, where no loss is asked for, skips it."""
        if not self.training:
            loss = logits.new_zeros(())
            return loss, Outputs(loss, logits[:, None], labels[:, :1], weights)
        clicked = weights * (labels[:, 0] == 1)
        loss = self.alpha * click_loss(logits, labels[:, 0], weights)
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * in_batch_softmax(
                user, ad, ad_ids, log_q, clicked, self.temperature
            )
        return loss, Outputs(
            loss.detach(), logits.detach()[:, None], labels[:, :1], weights
        )


class RankingTask(nn.Module):
    """The sum of the labels' losses, each over the rows that observe it."""

    def __init__(
        self,
        schema: Schema,
        config: RankerConfig,
        embedding_dim: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.model = Ranker(schema, config, embedding_dim, device)
        self.loss = RankingLoss(schema.labels)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss and logits of a batch."""
        logits = self.model(batch.user, batch.ad)
        return self.loss(logits, batch.labels, batch.weights)  # type: ignore[no-any-return]


class RankingLoss(nn.Module):
    """See `losses.click_loss` and `losses.value_loss`."""

    def __init__(self, labels: tuple[Label, ...]) -> None:
        super().__init__()
        self.labels = labels

    def forward(
        self, logits: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Outputs]:
        """(B, T) logits and labels."""
        losses = [
            click_loss(logits[:, t], labels[:, t], weights)
            if label.kind == "binary"
            else value_loss(logits[:, t], labels[:, t] / label.mean, weights)
            for t, label in enumerate(self.labels)
        ]
        loss = torch.stack(losses).sum()
        return loss, Outputs(loss.detach(), logits.detach(), labels, weights)
