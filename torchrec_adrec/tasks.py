"""Model plus loss: what the train pipeline runs. `forward(batch) -> (loss, outputs)`.

The pipeline traces a task down to its sharded modules. What comes after the lookups is
one module without parameters of its own, a leaf for the tracer: there Python may do
what it likes, and a GPU may run it as one graph (`training.graphs`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.config import Config
from torchrec_adrec.errors import PredictionError
from torchrec_adrec.guard import Guard
from torchrec_adrec.losses.anchors import Anchors
from torchrec_adrec.losses.history import History
from torchrec_adrec.losses.mean import Share, global_means
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
        self.guard = Guard()
        self.after_lookup = AfterLookup(self.model, self._compute, self.guard)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss and click logits of a batch. The first label is the click."""
        looked_up = self.model.look_up(batch.user, batch.ad)
        return self.after_lookup(looked_up, batch)  # type: ignore[no-any-return]

    def _compute(self, vectors: Sequence[Tensor], batch: Batch) -> "Computed":
        user, ad, logits = self.model.dense(vectors, batch.user.dense, batch.ad.dense)
        return Computed(self.loss(user, ad, logits, batch), logits[:, None], ad)


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
        alpha = self.config.alpha
        click = click_loss(logits, batch.labels[:, 0], batch.weights)
        if alpha == 1:
            return global_means([click])[0]
        parts = global_means([click, self._contrast(user, ad, batch)])
        return alpha * parts[0] + (1 - alpha) * parts[1]

    def _contrast(self, user: Tensor, ad: Tensor, b: Batch) -> Share:
        temperature = self.temperature()
        anchors = Anchors(b.anchors.long(), b.anchor_weights)
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
    longest = shared[0].max_length

    def read(batch: Batch) -> History:
        past = batch.user.sparse[name]
        items = batch.ad.sparse[item].values()
        return History(past.values(), past.lengths(), items, longest)

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
        return self.run(self._parts[0].in_order(looked_up), batch)

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
