"""Tokens that each read a whole side, where one token per column is too many.

Shape letters: B rows, E the concatenated vectors of a side, F numbers, D model width.
"""

import torch
from torch import Tensor, nn


class PooledTokens(nn.Module):
    """Mixes all vectors and numbers of a side to a few tokens of width D.

    A layer's cost per ad is that of its tokens, and 500 ads have many. The tokens of
    the columns are linear in vectors and numbers, so one linear layer over these is the
    most general linear pooling of the former, without computing them first. The idea of
    few mixed tokens is RankMixer's (Zhu et al., 2025, arXiv:2507.15551).

    Attributes:
        count: how many tokens there are.
    """

    def __init__(self, vectors: int, numbers: int, count: int, dim: int) -> None:
        """Make the weights.

        Args:
            vectors: E.
            numbers: F.
            count: how many tokens.
            dim: D.
        """
        super().__init__()
        self.count, self.dim = count, dim
        self.mix = nn.Linear(vectors + numbers, count * dim)

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Vectors (B, E) of the side's ids and (B, F) numbers -> (B, count, D)."""
        mixed: Tensor = self.mix(torch.cat([vectors, dense], dim=1))
        return mixed.view(-1, self.count, self.dim)
