"""FinalMLP: two perceptrons that see the features through gates of their own, joined
by a bilinear product.

Source: Mao et al., FinalMLP, AAAI 2023 (arXiv:2304.00902). One gate is driven by the
user's side and the other by the ad's, as the paper suggests.

Shape letters: B ads, F features of both sides, D columns of a table, N numbers of both
sides, T labels, K heads.
"""

import torch
from torch import Tensor, nn

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.joined import JoinedHead
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.schema import Schema, Side


class FinalMLPHead(JoinedHead):
    """Two streams, each a gate and hidden layers, and their fusion."""

    def __init__(self, schema: Schema, config: RankingConfig, width: int) -> None:
        super().__init__(schema, config, width)
        # The user's vectors and numbers stand first in their parts of the row.
        self.user_fields = len(schema.fields_of(Side.USER))
        self.user_numbers = len(schema.dense_of(Side.USER))
        ad_fields = self.fields - self.user_fields
        ad_numbers = self.numbers - self.user_numbers
        by_user = self.user_fields * self.dim + self.user_numbers
        by_ad = ad_fields * self.dim + ad_numbers
        hidden, dropout = config.hidden, config.dropout
        self.gates = nn.ModuleList(
            mlp((width, hidden[-1], self.width), dropout) for width in (by_user, by_ad)
        )
        self.streams = nn.ModuleList(
            mlp((self.width, *hidden), dropout) for _ in range(2)
        )
        self.fusion = BilinearFusion(hidden[-1], self.labels, config.heads)

    def mix(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """See `JoinedHead`."""
        fields, split = self.user_fields, self.user_numbers
        joined = torch.cat([vectors.flatten(1), numbers], dim=1)
        sides = (
            torch.cat([vectors[:, :fields].flatten(1), numbers[:, :split]], dim=1),
            torch.cat([vectors[:, fields:].flatten(1), numbers[:, split:]], dim=1),
        )
        # Twice a sigmoid: a gate that knows nothing lets every feature through as 1.
        one, other = (
            stream(joined * 2 * torch.sigmoid(gate(side)))
            for stream, gate, side in zip(self.streams, self.gates, sides, strict=True)
        )
        logits: Tensor = self.fusion(torch.relu(one), torch.relu(other))
        return logits


class BilinearFusion(nn.Module):
    """w1 x + w2 y + sum over heads of x_k W_k y_k: two vectors to logits."""

    def __init__(self, width: int, labels: int, heads: int) -> None:
        """Make the weights.

        Args:
            width: of both vectors.
            labels: T.
            heads: K, which must divide `width`: blocks of a bilinear map that would
                otherwise have width x width weights per label.
        """
        super().__init__()
        self.heads, block = heads, width // heads
        self.linear = nn.Linear(2 * width, labels)
        self.weight = nn.Parameter(
            torch.randn(labels, self.heads, block, block) * block**-1
        )

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """(B, width) twice -> (B, T)."""
        x = one.view(len(one), self.heads, -1)
        y = other.view(len(other), self.heads, -1)
        crossed = torch.einsum("bki,tkij,bkj->bt", x, self.weight, y)
        logits: Tensor = self.linear(torch.cat([one, other], dim=1)) + crossed
        return logits
