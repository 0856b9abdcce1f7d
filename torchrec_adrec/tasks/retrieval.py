"""The two towers with their loss, as the train pipeline runs them.

The pipeline traces a task down to its sharded modules. What comes after the lookups is
one module without parameters of its own, a leaf for the tracer: there Python may do
what it likes, and a GPU may run it as one graph (`training.graphs`).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.losses.anchors import Anchors
from torchrec_adrec.losses.hardest import hardest_now
from torchrec_adrec.losses.history import History
from torchrec_adrec.losses.mean import Share, global_means
from torchrec_adrec.losses.mined import Mined
from torchrec_adrec.losses.negatives import Negatives
from torchrec_adrec.losses.pairwise import pairwise_loss
from torchrec_adrec.losses.pointwise import click_loss
from torchrec_adrec.losses.softmax import sampled_softmax
from torchrec_adrec.losses.teacher import Teacher
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.tasks.after_lookup import AfterLookup, Computed, Outputs
from torchrec_adrec.tasks.guard import Guard


class RetrievalTask(nn.Module):
    """Trains the towers by alpha * click cross-entropy + (1 - alpha) * contrast."""

    def __init__(
        self,
        schema: Schema,
        config: RetrievalConfig,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.model = TwoTower(schema, config, device)
        self.loss = RetrievalLoss(config, schema)
        self.guard = Guard()
        self.after_lookup = AfterLookup(self.model, self._compute, self.guard)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return loss and click logits of a batch. The first label is the click."""
        items = batch.items if self.model.reads_items else None
        looked_up = self.model.look_up(batch.user, batch.ad, items)
        return self.after_lookup(looked_up, batch)  # type: ignore[no-any-return]

    def _compute(self, vectors: Sequence[Tensor], batch: Batch) -> "Computed":
        user, ad, logits = self.model.dense(vectors, batch.user.dense, batch.ad.dense)
        loss = self.loss(user, ad, logits, batch)
        return Computed(loss, logits[:, None], batch.labels[:, :1], ad)


class RetrievalLoss(nn.Module):
    """The joint loss of clicks and contrast, and the distance from a teacher.

    See `losses.pointwise.click_loss`, `losses.softmax`, `losses.pairwise` and
    `losses.teacher`.

    Attributes:
        progress: the share of all steps that this step ends, which a curriculum reads.
        teachers: by side, the vectors that the towers' are drawn towards; they are no
            weights, and whoever trains gives them (`training.teachers`).
    """

    teachers: Mapping[Side, Teacher]

    def __init__(self, config: RetrievalConfig, schema: Schema) -> None:
        super().__init__()
        self.config = config
        self.progress, self.teachers = 1.0, {}
        self.history = history_of(schema)
        initial = torch.tensor(config.temperature).log()
        # Without a contrast nothing uses it, and data parallelism over several ranks
        # refuses a parameter that gets no gradient. Its logarithm keeps it above 0.
        is_learned = config.learn_temperature and config.alpha < 1
        self.log_temperature = nn.Parameter(initial) if is_learned else None

    def forward(self, user: Tensor, ad: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """Compute it; evaluation, where no loss is asked for, skips it.

        Args:
            user: (B, D).
            ad: (N, D), N >= B: ads beyond the first B are additional negatives.
            logits: (B,), of the clicks.
            batch: the rows.
        """
        if not self.training:
            return logits.new_zeros(())
        alpha = self.config.alpha
        click = click_loss(logits, batch.labels[:, 0], batch.weights)
        terms = [(alpha, click)]
        if alpha < 1:
            terms.append((1 - alpha, self._contrast(user, ad, batch)))
        terms += self._distances(user, ad, batch)
        weights, shares = zip(*terms, strict=True)
        means = global_means(shares)
        first, *others = (w * m for w, m in zip(weights, means, strict=True))
        loss: Tensor = sum(others, first)
        return loss

    def _distances(
        self, user: Tensor, ad: Tensor, batch: Batch
    ) -> list[tuple[float, Share]]:
        """Compare the vectors of each taught side with those of its teacher."""
        settings = self.config.teacher
        if settings is None:
            return []
        students = {Side.USER: (user, batch.user_keys), Side.AD: (ad, batch.ad_ids)}
        return [
            (settings.weight, teacher.distance(*students[side], settings.loss))
            for side, teacher in self.teachers.items()
        ]

    def _contrast(self, user: Tensor, ad: Tensor, batch: Batch) -> Share:
        temperature = self.temperature()
        anchors = Anchors(batch.anchors.long(), batch.anchor_weights)
        history = self.history(batch) if self.history is not None else None
        ad, log_q, mined = self._apart(ad, batch.log_q, len(user))
        ad_ids, negatives = batch.ad_ids[: len(ad)], self._negatives(len(ad))
        if history is not None:
            history = history._replace(items=history.items[: len(ad)])
        if self.config.contrast != "softmax":
            return pairwise_loss(
                self.config.contrast,
                user,
                ad,
                ad_ids,
                anchors,
                temperature,
                history,
                negatives,
            )
        return sampled_softmax(
            user,
            ad,
            ad_ids,
            log_q if self.config.log_q != "none" else None,
            anchors,
            temperature,
            history,
            negatives,
            mined,
        )

    def _apart(
        self, ad: Tensor, log_q: Tensor, rows: int
    ) -> tuple[Tensor, Tensor, Mined | None]:
        """Set the ads that all rows share apart from those of single rows, the last."""
        count = self.config.mined.per_click
        if not count:
            return ad, log_q, None
        shared = len(ad) - rows * count
        vectors, logs = (x[shared:].unflatten(0, (rows, count)) for x in (ad, log_q))
        return ad[:shared], log_q[:shared], Mined(vectors, logs)

    def _negatives(self, ads: int) -> Negatives:
        """Choose the negatives of this step, of so many ads of this rank."""
        config = self.config
        hardest = config.hardest
        if hardest is not None:
            total = dist.get_world_size() * ads
            rises = config.hardest_rise
            risen = min(self.progress / rises, 1.0) if rises else 1.0
            hardest = hardest_now(hardest, total, risen)
        return Negatives(config.in_batch_negatives, hardest, config.log_q == "standard")

    def temperature(self) -> float | Tensor:
        """Return what divides the scores, fixed or learned."""
        if self.log_temperature is None:
            return self.config.temperature
        return self.log_temperature.exp()


def history_of(schema: Schema) -> Callable[[Batch], History] | None:
    """Return what reads the users' known positives of a batch.

    Only a sequence that shares its ids with a feature of the ads can be compared with
    the ads; without one the result is None.
    """
    shared = [f for f in schema.sequences if f.shares_ids_with is not None]
    if not shared:
        return None
    name, item = shared[0].name, str(shared[0].shares_ids_with)
    longest = shared[0].max_length

    def read(batch: Batch) -> History:
        past = batch.user.sparse[name]
        items = batch.ad.sparse[item].values()
        return History(past.values(), past.lengths(), items, longest)

    return read
