"""A user tower and an ad tower that meet only in an inner product."""

import torch
from torch import Tensor, nn

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.models.tower import Tower
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.train_config import TowersConfig


class TwoTower(nn.Module):
    """Two towers and what turns their inner product into a click's logit.

    The score of a pair is the inner product of the two vectors and nothing else, so
    what is trained, exported and searched is one number. With `similarity: cosine` the
    towers normalise their vectors.
    """

    def __init__(
        self, schema: Schema, config: TowersConfig, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.user_tower = Tower(schema, Side.USER, config, device)
        self.ad_tower = Tower(schema, Side.AD, config, device)
        self.calibration = Calibration()

    def forward(
        self, user: TowerInput, ad: TowerInput
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both sides of B pairs -> user (B, D), ad (N, D), click logit (B,).

        The ad's side may have more rows, N >= B: negatives, which belong to no user.
        """
        user_vectors, user_bias = self.user_tower.outputs(user)
        ad_vectors = self.ad_tower(ad)
        logits = self.calibration(user_vectors, ad_vectors) + user_bias
        return user_vectors, ad_vectors, logits


class Calibration(nn.Module):
    """logit = exp(log_scale) * score + bias, both learned: a cosine is no logit."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(5.0).log())
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, user: Tensor, ad: Tensor) -> Tensor:
        """(B, D) and (N, D), N >= B -> (B,)."""
        scores = (user * ad[: len(user)]).sum(dim=1)
        return self.log_scale.exp() * scores + self.bias
