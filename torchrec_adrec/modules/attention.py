"""Transformer layers in which an ad sees the user, and the user never sees an ad.

Source of the layer: pre-norm transformer, Xiong et al. 2020 (arXiv:2002.04745).

Shape letters: B rows, U user tokens, A ad tokens, H heads, D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneWayLayer(nn.Module):
    """One layer over two streams of tokens that share all weights.

    User tokens attend to user tokens; ad tokens attend to the user's and to the ad
    tokens of their row. That is full attention under the mask of `one_way_mask`,
    without computing what the mask would discard, and the user's stream can be computed
    once for any number of ads.
    """

    def __init__(
        self, dim: int, heads: int, feedforward_dim: int, dropout: float
    ) -> None:
        """Make the weights.

        Args:
            dim: D, a multiple of `heads`.
            heads: H.
            feedforward_dim: width of the hidden layer.
            dropout: share of dropped attention weights and activations.
        """
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(dim)
        # No bias: a key's bias has no gradient (it shifts all logits of a softmax
        # alike), and Adam would turn its rounding noise into steps that differ between
        # world sizes.
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, feedforward_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward_dim, dim),
            nn.Dropout(dropout),
        )

    def forward(
        self, user: Tensor, ad: Tensor, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            user: (B or 1, U, D).
            ad: (B, A, D).
            present: (B or 1, U), False for the user's tokens that nobody may see; None:
                all are seen.

        Returns:
            Both in their shapes.
        """
        user_q, user_k, user_v = self._project(user)
        ad_q, ad_k, ad_v = self._project(ad)
        mask = None if present is None else present[:, None, None]
        user = user + self._out(self._attend(user_q, user_k, user_v, mask))
        if user.shape[0] == ad.shape[0]:
            keys = torch.cat([user_k, ad_k], dim=2)
            values = torch.cat([user_v, ad_v], dim=2)
            if mask is not None:
                mask = F.pad(mask, (0, ad.shape[1]), value=True)
            ad = ad + self._out(self._attend(ad_q, keys, values, mask))
        else:
            mixed = attend_to_both(ad_q, (user_k, user_v), (ad_k, ad_v), mask)
            ad = ad + self._out(mixed)
        return user + self.feedforward(user), ad + self.feedforward(ad)

    def _project(self, tokens_btd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project (B, T, D) to query, key and value, each (B, H, T, D / H)."""
        rows, tokens, dim = tokens_btd.shape
        qkv = self.query_key_value(self.attention_norm(tokens_btd))
        split = qkv.view(rows, tokens, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        return query, key, value

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        # The function does not know of `eval()`, as a module would.
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout
        )

    def _out(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.attention_out(mixed.transpose(1, 2).flatten(2))
        return out


KeysValues = tuple[Tensor, Tensor]


def attend_to_both(
    query: Tensor,
    shared: KeysValues,
    by_row: KeysValues,
    mask: Tensor | None = None,
) -> Tensor:
    """Attend to keys that all rows share and to keys of each row, in one softmax.

    It is `scaled_dot_product_attention` over the concatenation, which would need the
    shared keys and values once per row: of 500 candidates 34 MB a layer, half of the
    time of a request. The rows' queries meet the shared keys in one product instead.

    Args:
        query: (B, H, A, D / H), of the ads' tokens.
        shared: keys and values of the one user, (1, H, U, D / H).
        by_row: those of the ads, (B, H, A, D / H).
        mask: (1, 1, 1, U), False for shared keys that nobody may see; None: all are.

    Returns:
        (B, H, A, D / H).
    """
    # (H, B, A, ...) throughout: the user's keys differ by head alone.
    rows, heads, tokens, width = query.shape
    query, row_keys, row_values = (x.transpose(0, 1) for x in (query, *by_row))
    users = shared[0].shape[2]
    to_user = query.reshape(heads, rows * tokens, width) @ shared[0][0].mT
    if mask is not None:
        to_user = to_user.masked_fill(~mask[0], -torch.inf)
    to_ad = query @ row_keys.mT
    logits = torch.cat([to_user.view(heads, rows, tokens, users), to_ad], dim=-1)
    weights = (logits * width**-0.5).softmax(dim=-1)
    of_user = weights[..., :users].reshape(heads, rows * tokens, users) @ shared[1][0]
    of_ad: Tensor = weights[..., users:] @ row_values
    attended: Tensor = of_user.view_as(of_ad) + of_ad
    return attended.transpose(0, 1)


def one_way_mask(user_tokens: int, ad_tokens: int) -> Tensor:
    """Write the layer's attention as a mask over user and ad tokens, (U + A, U + A).

    True: the row's token may attend to the column's. For tests and readers alone.
    """
    total = user_tokens + ad_tokens
    mask = torch.ones(total, total, dtype=torch.bool)
    mask[:user_tokens, user_tokens:] = False
    return mask
