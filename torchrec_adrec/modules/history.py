"""Encoders of a user's history, which read the items in their order.

They take the items' vectors oldest first. A vector of zeros is no item: so look the
places behind the end of a history, and no id has such a vector. The result of a history
does not depend on how many of these places there are. One without items has a learned
vector, which its first users train.

Shape letters: B rows, L places, T = L + 1 tokens, Q queries, H heads, D width.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STD = 0.02  # of learned vectors at the start


def present_items(items: Tensor) -> Tensor:
    """Tell which places of (B, L, D) hold an item, (B, L)."""
    return items.detach().any(dim=2)


def places_back(present: Tensor) -> Tensor:
    """Count the items behind each place of (B, L): 0 for the latest one."""
    return present.flip(1).cumsum(dim=1).flip(1).sub(1).clamp(min=0)


class HistoryEncoder(nn.Module, ABC):
    """Histories (B, L * D) -> (B, D).

    Attributes:
        width: L * D.
    """

    def __init__(self, length: int, dim: int, dropout: float) -> None:
        """Make what all encoders have.

        Args:
            length: L.
            dim: D.
            dropout: share of the items' numbers that a training step leaves out.
        """
        super().__init__()
        self.length, self.width = length, length * dim
        self.start = nn.Parameter(torch.randn(dim) * STD)
        self.dropout = nn.Dropout(dropout)

    def forward(self, histories: Tensor) -> Tensor:
        """Encode histories."""
        items = histories.unflatten(1, (self.length, -1))
        present = present_items(items)
        places = torch.arange(1, self.length + 1, device=items.device)
        last = (present * places).amax(dim=1)
        # float32 also where the products are not
        return self.encode(items, present, last).float()

    @abstractmethod
    def encode(self, items: Tensor, present: Tensor, last: Tensor) -> Tensor:
        """Encode items (B, L, D), (B, D).

        Args:
            items: their vectors.
            present: (B, L), False where there is no item.
            last: (B,), the place of the latest item, counted from 1; 0: no item.
        """


class AttentionHistory(HistoryEncoder):
    """Causal self-attention; the latest item's output is the history's vector.

    A position counts from the latest item back: it is how long ago an item was, and
    not how long the history is.

    Source: Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018
    (arXiv:1808.09781).
    """

    def __init__(
        self, length: int, dim: int, layers: int, heads: int, dropout: float
    ) -> None:
        """Make the layers.

        Args:
            length: L.
            dim: D, a multiple of `heads`.
            layers: blocks.
            heads: H.
            dropout: share of numbers, attention weights and activations left out.
        """
        super().__init__(length, dim, dropout)
        self.positions = nn.Parameter(torch.randn(length, dim) * STD)
        self.blocks = nn.ModuleList(
            CausalBlock(dim, heads, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def encode(self, items: Tensor, present: Tensor, last: Tensor) -> Tensor:
        """See `HistoryEncoder`."""
        tokens, allowed = self.tokens(items, present)
        *earlier, final = self.blocks
        for block in earlier:
            tokens = block(tokens, tokens, allowed)
        # Only the latest item's output is read, so the last block asks for no other.
        rows = torch.arange(len(tokens), device=tokens.device)
        query, allowed = tokens[rows, last, None], allowed[rows, last, None]
        out: Tensor = self.norm(final(query, tokens, allowed))
        return out[:, 0]

    def tokens(self, items: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Make the tokens, (B, T, D), and which may attend to which, (B, T, T)."""
        rows, length, dim = items.shape
        placed = items * dim**0.5 + self.positions[places_back(present)]
        start = self.start.expand(rows, 1, dim)
        tokens = torch.cat([start, self.dropout(placed)], dim=1)
        keys = F.pad(present, (1, 0), value=True)
        causal = torch.ones(
            length + 1, length + 1, dtype=torch.bool, device=items.device
        ).tril()
        return tokens, keys[:, None] & causal


class CausalBlock(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        # Without a bias, as in `modules.attention`.
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, queries: Tensor, tokens: Tensor, allowed: Tensor) -> Tensor:
        """Compute the outputs of some tokens, (B, Q, D).

        Args:
            queries: (B, Q, D), the tokens whose outputs are computed.
            tokens: (B, T, D), all of them.
            allowed: (B, Q, T), which of them each query may attend to.
        """
        query = self._by_head(self.query(self.attention_norm(queries)), 1)
        key, value = self._by_head(self.key_value(self.attention_norm(tokens)), 2)
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            query[0], key, value, allowed[:, None], dropout_p=dropout
        )
        out = self.attention_out(mixed.transpose(1, 2).flatten(2))
        attended = queries + self.dropout(out)
        outputs: Tensor = attended + self.feedforward(attended)
        return outputs

    def _by_head(self, projected: Tensor, parts: int) -> Tensor:
        """Split (B, T, parts * D) into (parts, B, H, T, D / H)."""
        split: Tensor = projected.unflatten(2, (parts, self.heads, -1))
        return split.permute(2, 0, 3, 1, 4)


class GRUHistory(HistoryEncoder):
    """A gated recurrent unit; its state after the latest item is the vector.

    Source: Hidasi et al., Session-based Recommendations with Recurrent Neural Networks,
    ICLR 2016 (arXiv:1511.06939).
    """

    def __init__(self, length: int, dim: int, layers: int, dropout: float) -> None:
        """Make the layers.

        Args:
            length: L.
            dim: D.
            layers: of the unit.
            dropout: share of the numbers left out before each layer.
        """
        super().__init__(length, dim, dropout)
        between = dropout if layers > 1 else 0.0
        self.gru = nn.GRU(dim, dim, layers, batch_first=True, dropout=between)

    def encode(self, items: Tensor, present: Tensor, last: Tensor) -> Tensor:
        """See `HistoryEncoder`."""
        rows, _, dim = items.shape
        start = self.start.expand(self.gru.num_layers, rows, dim).contiguous()
        # A packed sequence cannot be empty. What the unit makes of the places behind a
        # history is not read.
        states, _ = self.gru(self.dropout(items * dim**0.5), start)
        states = torch.cat([start[-1][:, None], states], dim=1)
        out: Tensor = states[torch.arange(rows, device=items.device), last]
        return out
