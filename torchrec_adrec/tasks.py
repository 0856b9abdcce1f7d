"""Model plus loss: what the train pipeline runs. `forward(batch) -> (loss, outputs)`.

The losses are modules because the pipeline traces a task down to its sharded modules; a
module that holds none of them is a leaf and runs as plain Python.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.config import Config
from torchrec_adrec.errors import NonFiniteLossError, PredictionError
from torchrec_adrec.losses.history import History
from torchrec_adrec.losses.pairwise import pairwise_loss
from torchrec_adrec.losses.pointwise import click_loss, value_loss
from torchrec_adrec.losses.softmax import in_batch_softmax
from torchrec_adrec.models.ranker import Ranker
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.schema import Label, Schema
from torchrec_adrec.train_config import RankerConfig, TowersConfig


class Outputs(NamedTuple):
    """What a task returns beside the loss, detached: the pipeline passes on only this.

    Attributes:
        loss: scalar, the global loss, the same on every rank.
        stop: whether a rank was asked to stop (training only).
        logits, labels: (B, T).
        weights: (B,).
        ads: (N, D) ad vectors of the towers; of the ranker (0, 0).
    """

    loss: Tensor
    stop: Tensor
    logits: Tensor
    labels: Tensor
    weights: Tensor
    ads: Tensor


TASKS = ("retrieval", "ranking")


def build_task(
    name: str, schema: Schema, config: Config, device: torch.device | None = None
) -> "RetrievalTask | RankingTask":
    """The task of that name, its tables on `device` (meta: nowhere yet)."""
    if name == "retrieval":
        return RetrievalTask(schema, config.towers, device)
    return RankingTask(schema, config.ranker, config.towers.embedding_dim, device)


def prediction(label: Label, logits: Tensor) -> Tensor:
    """What a logit says: the probability of a binary label, or the expected value.

    Raises:
        PredictionError: one is not finite.
    """
    is_binary = label.kind == "binary"
    found = torch.sigmoid(logits) if is_binary else label.mean * torch.exp(logits)
    wrong = ~(logits.isfinite() & found.isfinite())
    if wrong.any():
        raise PredictionError(
            f"{int(wrong.sum())} of {len(logits)} predictions of {label.name} are not"
            f" finite (one is {found[wrong][0]:g}, of a logit {logits[wrong][0]:g}):"
            " `adrec checkpoint inspect` shows whether the weights are; train again"
        )
    return found


class RetrievalTask(nn.Module):
    """alpha * click cross-entropy + (1 - alpha) * contrast."""

    def __init__(
        self, schema: Schema, config: TowersConfig, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.model = TwoTower(schema, config, device)
        self.loss = RetrievalLoss(config, schema)
        self.agree = Agreement()

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss and click logits of a batch. The first label is the click."""
        user, ad, logits = self.model(batch.user, batch.ad)
        loss = self.loss(user, ad, logits, batch)
        return self.agree(loss, logits[:, None], batch, ad)  # type: ignore[no-any-return]


class RetrievalLoss(nn.Module):
    """See `losses.pointwise.click_loss`, `losses.softmax` and `losses.pairwise`."""

    def __init__(self, config: TowersConfig, schema: Schema) -> None:
        super().__init__()
        self.config = config
        self.history = history_of(schema)
        start = torch.tensor(config.temperature).log()
        learned = config.learn_temperature and config.alpha < 1
        self.log_temperature = nn.Parameter(start) if learned else None

    def forward(self, user: Tensor, ad: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """The joint loss; evaluation, where no loss is asked for, skips it.

        Args:
            user: (B, D).
            ad: (N, D), N >= B.
            logits: (B,).
        """
        if not self.training:
            return logits.new_zeros(())
        labels = batch.labels[:, 0]
        loss = self.config.alpha * click_loss(logits, labels, batch.weights)
        if self.config.alpha == 1:
            return loss
        anchors = batch.weights * (labels == 1)
        return loss + (1 - self.config.alpha) * self._contrast(user, ad, anchors, batch)

    def _contrast(self, user: Tensor, ad: Tensor, anchors: Tensor, b: Batch) -> Tensor:
        temperature = self.temperature()
        if self.config.contrast != "softmax":
            return pairwise_loss(
                self.config.contrast, user, ad, b.ad_ids, anchors, temperature
            )
        log_q = b.log_q if self.config.log_q else None
        history = self.history(b) if self.history is not None else None
        return in_batch_softmax(
            user, ad, b.ad_ids, log_q, anchors, temperature, history
        )

    def temperature(self) -> float | Tensor:
        """What divides the scores, fixed or learned."""
        if self.log_temperature is None:
            return self.config.temperature
        return self.log_temperature.exp()


def history_of(schema: Schema) -> Callable[[Batch], History] | None:
    """What reads the users' known positives, if a sequence shares an ad's ids."""
    shared = [f for f in schema.sequences if f.shares is not None]
    if not shared:
        return None
    name, item = shared[0].name, str(shared[0].shares)

    def read(batch: Batch) -> History:
        past = batch.user.sparse[name]
        return History(past.values(), past.lengths(), batch.ad.sparse[item].values())

    return read


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
        self.agree = Agreement()

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss and logits of a batch."""
        logits = self.model(batch.user, batch.ad)
        loss = self.loss(logits, batch.labels, batch.weights)
        return self.agree(loss, logits, batch)  # type: ignore[no-any-return]


class RankingLoss(nn.Module):
    """See `losses.pointwise`."""

    def __init__(self, labels: tuple[Label, ...]) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """(B, T) logits and labels -> the sum of the losses; 0 in evaluation."""
        if not self.training:
            return logits.new_zeros(())
        losses = [
            click_loss(logits[:, t], labels[:, t], weights)
            if label.kind == "binary"
            else value_loss(logits[:, t], labels[:, t] / label.mean, weights)
            for t, label in enumerate(self.labels)
        ]
        return torch.stack(losses).sum()


class Agreement(nn.Module):
    """What all ranks must know of a step before any goes backward.

    Tables are updated inside backward: a loss that is not finite on one rank has to
    stop all of them here. One small all_reduce tells both this and whether a rank was
    asked to stop, so that all save at the same step.

    Attributes:
        asked_to_stop: whether this rank was; set by the trainer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked_to_stop: Callable[[], bool] = lambda: False

    def forward(
        self, loss: Tensor, logits: Tensor, batch: Batch, ads: Tensor | None = None
    ) -> tuple[Tensor, Outputs]:
        """Pass the loss on.

        Raises:
            NonFiniteLossError: on every rank, if any rank's loss is not finite.
        """
        told = torch.stack([loss.detach(), loss.new_tensor(self.asked_to_stop())])
        if self.training:
            if dist.get_world_size() > 1:
                dist.all_reduce(told)
                told = told / dist.get_world_size()
            if not told[0].isfinite():
                raise NonFiniteLossError(f"the loss became {told[0].item()}")
        ads = logits.new_empty(0, 0) if ads is None else ads.detach()
        labels = batch.labels[:, : logits.shape[1]]
        return loss, Outputs(
            told[0], told[1] > 0, logits.detach(), labels, batch.weights, ads
        )
