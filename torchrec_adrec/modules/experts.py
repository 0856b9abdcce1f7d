"""From flat tokens to a logit of each label: what labels share, and what they do not.

Shape letters: B ads, U and A columns of the sides, K experts, T labels, D hidden width.
"""

import torch
from torch import Tensor, nn

from torchrec_adrec.modules.split_linear import SplitLinear


class SharedBottom(nn.Module):
    """One hidden layer that all labels read.

    It is split by side, so a request multiplies its user once.
    """

    def __init__(
        self, widths: tuple[int, int], hidden: int, labels: int, dropout: float
    ) -> None:
        """Make the weights.

        Args:
            widths: U and A.
            hidden: D.
            labels: T.
            dropout: share of dropped activations.
        """
        super().__init__()
        self.hidden = SplitLinear(*widths, hidden)
        self.out = nn.Sequential(
            nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, labels)
        )

    def forward(self, user: Tensor, ad: Tensor) -> Tensor:
        """(B or 1, U) and (B, A) -> (B, T) logits."""
        logits: Tensor = self.out(self.hidden(user, ad))
        return logits


class MultiGateExperts(nn.Module):
    """Each label reads its own mixture of experts that all labels share.

    Experts and gates are split by side, so a request multiplies its user once.

    Source: Ma et al., Multi-gate Mixture-of-Experts, KDD 2018.
    """

    def __init__(
        self,
        widths: tuple[int, int],
        experts: int,
        hidden: int,
        labels: int,
        dropout: float,
    ) -> None:
        """Make the weights.

        Args:
            widths: U and A.
            experts: K.
            hidden: D of each expert.
            labels: T.
            dropout: share of dropped activations of the experts.
        """
        super().__init__()
        self.shape = (-1, experts, hidden)
        self.experts = SplitLinear(*widths, experts * hidden)
        self.gates = SplitLinear(*widths, labels * experts)
        self.active = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        # A linear layer per label, held as one: row t is that of label t.
        self.out = nn.Linear(hidden, labels)

    def forward(self, user: Tensor, ad: Tensor) -> Tensor:
        """(B or 1, U) and (B, A) -> (B, T) logits."""
        hidden = self.active(self.experts(user, ad)).view(self.shape)
        gates = self.gates(user, ad).view(len(ad), -1, hidden.shape[1])
        mixed_btd = torch.softmax(gates, dim=-1) @ hidden
        logits: Tensor = (mixed_btd * self.out.weight).sum(dim=-1) + self.out.bias
        return logits
