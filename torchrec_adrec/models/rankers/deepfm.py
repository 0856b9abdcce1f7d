"""DeepFM: first order, all products of two vectors, and a deep part, added up.

Source: Guo et al., DeepFM, IJCAI 2017 (arXiv:1703.04247).

Shape letters: B ads, F features of both sides, D columns of a table, N numbers of both
sides, T labels.
"""

import torch
from torch import Tensor, nn

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.joined import JoinedHead
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.schema import Schema


class DeepFMHead(JoinedHead):
    """The sum of a linear, a pairwise and a deep part.

    TorchRec's `FactorizationMachine` returns one number per row, summed over the
    vectors' columns. That is one label's pairwise term; here every label weighs the
    columns by itself, which for one label and weights of 1 is the paper's term.
    """

    def __init__(self, schema: Schema, config: RankingConfig, width: int) -> None:
        super().__init__(schema, config, width)
        self.linear = nn.Linear(self.width, self.labels)
        # A number takes part in products as its value times a vector of its own.
        self.number = nn.Parameter(torch.randn(self.numbers, self.dim) * 0.01)
        # The mean over all pairs at first. Their sum grows with the square of the
        # vectors' lengths: of tables that come from the towers it was so large that a
        # value's exp(logit) was infinite at the first step.
        fields = self.fields + self.numbers
        pairs = max(1, fields * (fields - 1) // 2)
        self.weight = nn.Parameter(torch.full((self.dim, self.labels), 1 / pairs))
        self.deep = mlp((self.width, *config.hidden, self.labels), config.dropout)

    def mix(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """See `JoinedHead`."""
        joined = torch.cat([vectors.flatten(1), numbers], dim=1)
        fields = torch.cat([vectors, numbers[:, :, None] * self.number], dim=1)
        logits: Tensor = self.linear(joined) + self.deep(joined)
        return logits + pairwise(fields) @ self.weight


def pairwise(fields: Tensor) -> Tensor:
    """Sum of the products of every two fields, (B, F, D) -> (B, D), in O(F).

    (sum of all) squared less the sum of squares is every product twice.
    """
    return 0.5 * (fields.sum(dim=1).square() - fields.square().sum(dim=1))
