"""A plain multi-layer perceptron over all vectors and numbers: the usual baseline.

Shape letters: B ads, E the concatenated vectors of a side, F numbers, T labels.
"""

import torch
from torch import Tensor, nn

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.base import RankerHead
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.modules.split_linear import SplitLinear
from torchrec_adrec.schema import Schema, Side


class DnnHead(RankerHead):
    """The first layer is split by side, so a request multiplies its user once."""

    def __init__(self, schema: Schema, config: RankingConfig, width: int) -> None:
        super().__init__(schema, config, width)
        user, ad = (
            len(schema.fields_of(side)) * width + len(schema.dense_of(side))
            for side in Side
        )
        self.first = SplitLinear(user, ad, config.hidden[0])
        self.rest = nn.Sequential(
            nn.ReLU(),
            nn.Dropout(config.dropout),
            mlp((*config.hidden, len(schema.labels)), config.dropout),
        )

    def forward(
        self, user: Tensor, user_dense: Tensor, ad: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """See `RankerHead`."""
        hidden = self.first(
            torch.cat([user, user_dense], dim=1), torch.cat([ad, ad_dense], dim=1)
        )
        logits: Tensor = self.rest(hidden)
        return logits.float()
