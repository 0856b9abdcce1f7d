"""A user tower and an ad tower that meet only in an inner product."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_adrec.batch import ITEMS, TowerInput, items_of
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.models.tower import BiasTower, Tower
from torchrec_adrec.modules.embeddings import regroup, split_items
from torchrec_adrec.schema import Schema, Side


class TwoTower(nn.Module):
    """Two towers, and a calibration that turns their inner product into a logit.

    The score of a pair is the inner product of the two vectors and nothing else, so
    what is trained, exported and searched is one number. With `similarity: cosine` the
    towers normalise their vectors.

    With `click_bias` each side also adds a number to the click's logit, from separate
    tables. The contrast trains the score to tell which ads belong to a user; how often
    a user clicks at all, and an ad is clicked by anyone, is left to the biases.
    """

    def __init__(
        self,
        schema: Schema,
        config: RetrievalConfig,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.user_tower = Tower(schema, Side.USER, config, device)
        self.ad_tower = Tower(schema, Side.AD, config, device)
        self.calibration = Calibration()
        self.user_bias, self.ad_bias = (
            BiasTower(schema, side, config, device) if config.click_bias else None
            for side in Side
        )

    def forward(
        self, user: TowerInput, ad: TowerInput
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode both sides of B pairs.

        Args:
            user: B rows.
            ad: N >= B rows; those behind the first B are negatives of no user.

        Returns:
            user (B, D), ad (N, D), click logit (B,).
        """
        items = items_of(user, ad) if self.reads_items else None
        vectors = self.regroup(self.look_up(user, ad, items))
        return self.dense(vectors, user.dense, ad.dense)

    def biases_of(self, side: Side, rows: TowerInput) -> list[Tensor]:
        """Compute what one side alone adds to click logits, (B,), if it adds anything.

        With known scores, `calibration.logits` makes those of `forward` of it: what an
        index has computed is not done again, nor what is the same for every user.
        """
        tower = self.user_bias if side == Side.USER else self.ad_bias
        if tower is None:
            return []
        vectors = regroup(tower.tables(rows.sparse), tower.head.names)
        return [tower.head(vectors, rows.dense)]

    @property
    def reads_items(self) -> bool:
        """Whether histories and ads read one table, id by id."""
        return self.ad_tower.items is not None

    def encode_users(self, user: TowerInput) -> Tensor:
        """Encode users without ads, (B, D); `ad_tower` encodes ads without users."""
        vectors: Tensor = self.user_tower(user, self.ad_tower.items)
        return vectors

    def look_up(
        self, user: TowerInput, ad: TowerInput, items: KeyedJaggedTensor | None = None
    ) -> tuple[Any, ...]:
        """Look up the vectors of all tables.

        Args:
            user, ad: rows of both sides.
            items: of both (`Batch.items`), where `reads_items`.

        Returns:
            Those of the user, the ad, both biases, and the items.
        """
        vectors = [
            self.user_tower.tables(user.sparse),
            self.ad_tower.tables(ad.sparse),
        ]
        if self.user_bias is not None and self.ad_bias is not None:
            biases = (self.user_bias, user), (self.ad_bias, ad)
            vectors += [bias.tables(rows.sparse) for bias, rows in biases]
        if self.ad_tower.items is not None:
            vectors.append(self.ad_tower.items(items))
        return tuple(vectors)

    def regroup(self, looked_up: Sequence[Any]) -> list[Tensor]:
        """Bring each collection's vectors into the order of features, (B or N, E)."""
        histories = ads = None
        bags = list(looked_up)
        if self.reads_items:
            items, rows, count = bags.pop()[ITEMS], *map(_rows, bags[:2])
            histories, ads = split_items(items, rows, count, self.user_tower.length)
        regrouped = [
            self.user_tower.regroup(bags[0], histories),
            self.ad_tower.regroup(bags[1], ads),
        ]
        biases = (self.user_bias, self.ad_bias)
        for vectors, part in zip(bags[2:], biases, strict=False):
            assert part is not None
            regrouped.append(regroup(vectors, part.head.names))
        return regrouped

    def dense(
        self, vectors: Sequence[Tensor], user_dense: Tensor, ad_dense: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode as `forward` does, from vectors that are looked up and in order."""
        user = self.user_tower.head(vectors[0], user_dense)
        ad = self.ad_tower.head(vectors[1], ad_dense)
        biases = []
        if self.user_bias is not None and self.ad_bias is not None:
            biases = [
                self.user_bias.head(vectors[2], user_dense),
                self.ad_bias.head(vectors[3], ad_dense),
            ]
        return user, ad, self.calibration(user, ad, biases)


def _rows(vectors: KeyedTensor) -> int:
    return len(vectors.values())


class Calibration(nn.Module):
    """The click's logit: exp(log_scale) * score + biases, with a learned scale.

    A cosine lies between -1 and 1, which as a logit could say neither 0.1% nor 90%.
    """

    def __init__(self) -> None:
        super().__init__()
        # The scale starts low, because a step moves it by a learning rate: starting at
        # 5, an epoch of Criteo ended with AUC 0.742 in place of 0.750.
        self.log_scale = nn.Parameter(torch.tensor(1.5).log())
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, user: Tensor, ad: Tensor, biases: list[Tensor]) -> Tensor:
        """Compute the logits of B pairs.

        Args:
            user: (B, D).
            ad: (N, D), N >= B.
            biases: (B,) or (N,) each.

        Returns:
            (B,).
        """
        # Even a slice of all rows costs a copy.
        paired = ad if len(ad) == len(user) else ad[: len(user)]
        return self.logits((user * paired).sum(dim=1), [b[: len(user)] for b in biases])

    def logits(self, scores: Tensor, biases: list[Tensor]) -> Tensor:
        """Compute the logits of scores (B,) and biases of B rows or of one."""
        logits: Tensor = self.log_scale.exp() * scores + self.bias
        for bias in biases:
            logits = logits + bias
        return logits
