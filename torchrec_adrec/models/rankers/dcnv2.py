"""DCNv2: explicit crosses beside a deep part.

Source: Wang et al., DCN V2, WWW 2021 (arXiv:2008.13535), the parallel form with
low-rank cross layers.

Shape letters: B ads, F features of both sides, D columns of a table, N numbers of both
sides, T labels.
"""

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.joined import JoinedHead
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.schema import Schema


class DCNv2Head(JoinedHead):
    """Cross layers and hidden layers, read together by one linear layer."""

    def __init__(self, schema: Schema, config: RankingConfig, width: int) -> None:
        super().__init__(schema, config, width)
        self.cross = LowRankCrossNet(
            self.width, config.cross_layers, min(config.cross_rank, self.width)
        )
        self.deep = nn.Sequential(
            mlp((self.width, *config.hidden), config.dropout),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        self.out = nn.Linear(self.width + config.hidden[-1], self.labels)

    def mix(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """See `JoinedHead`."""
        joined = torch.cat([vectors.flatten(1), numbers], dim=1)
        both = torch.cat([self.cross(joined), self.deep(joined)], dim=1)
        logits: Tensor = self.out(both)
        return logits
