"""DLRM: dot products of every two vectors, with the numbers as one vector more.

Source: Naumov et al., DLRM, 2019 (arXiv:1906.00091); the parts are TorchRec's.

Shape letters: B ads, F features of both sides, D columns of a table, N numbers of both
sides, T labels.
"""

import torch
from torch import Tensor
from torchrec.models.dlrm import InteractionArch

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.joined import JoinedHead
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.schema import Schema


class DLRMHead(JoinedHead):
    """A bottom layer for the numbers, the interaction, and hidden layers above it."""

    def __init__(self, schema: Schema, config: RankingConfig, width: int) -> None:
        super().__init__(schema, config, width)
        self.bottom = mlp((self.numbers, config.hidden[-1], self.dim), config.dropout)
        self.interaction = InteractionArch(self.fields)
        pairs = (self.fields + 1) * self.fields // 2
        widths = (self.dim + pairs, *config.hidden, self.labels)
        self.top = mlp(widths, config.dropout)

    def mix(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """See `JoinedHead`."""
        bottom = torch.relu(self.bottom(numbers))
        logits: Tensor = self.top(self.interaction(bottom, vectors))
        return logits
