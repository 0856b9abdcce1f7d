"""What rankers share that mix both sides from their first layer on.

Shape letters: B ads, F features of both sides, D columns of a table, N numbers of both
sides, T labels.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.base import RankerHead
from torchrec_adrec.schema import Schema, Side


class JoinedHead(RankerHead):
    """Puts both sides into one row per ad and leaves the rest to `mix`.

    Attributes:
        fields: F.
        dim: D.
        numbers: N.
        labels: T.
        width: columns of vectors and numbers side by side, F * D + N.
    """

    shares_user = False

    def __init__(self, schema: Schema, config: RankingConfig, width: int) -> None:
        super().__init__(schema, config, width)
        self.fields = sum(len(schema.fields_of(side)) for side in Side)
        self.numbers = sum(len(schema.dense_of(side)) for side in Side)
        self.dim, self.labels = width, len(schema.labels)

        self.width = self.fields * self.dim + self.numbers

    def forward(
        self, user: Tensor, user_dense: Tensor, ad: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """See `RankerHead`."""
        vectors = side_by_side(user, ad)
        numbers = side_by_side(user_dense, ad_dense)
        return self.mix(vectors.view(-1, self.fields, self.dim), numbers).float()

    @abstractmethod
    def mix(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """(B, F, D) vectors and (B, N) numbers -> (B, T) logits."""


def side_by_side(user: Tensor, ad: Tensor) -> Tensor:
    """(B or 1, X) and (B, Y) -> (B, X + Y): one user's row stands before every ad."""
    return torch.cat([user.expand(len(ad), -1), ad], dim=1)
