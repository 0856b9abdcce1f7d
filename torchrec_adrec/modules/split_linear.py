"""A linear layer over the features of both sides, of which the user's half is shared.

Shape letters: B ads, U and A input columns of the sides, D output columns.
"""

from torch import Tensor, nn


class SplitLinear(nn.Module):
    """W [user; ad] + b, computed as (W_user user + b) + W_ad ad.

    A layer over the concatenation would need the user's columns once per ad. Split, a
    request with one user and 500 ads multiplies the user's columns once.
    """

    def __init__(
        self, user_width: int, ad_width: int, out: int, bias: bool = True
    ) -> None:
        """Make both halves.

        Args:
            user_width: U.
            ad_width: A.
            out: D.
            bias: whether a bias is added; it belongs to the user's half.
        """
        super().__init__()
        self.user = nn.Linear(user_width, out, bias=bias)
        self.ad = nn.Linear(ad_width, out, bias=False)

    def forward(self, user: Tensor, ad: Tensor) -> Tensor:
        """(B or 1, U) and (B, A) -> (B, D)."""
        out: Tensor = self.user(user) + self.ad(ad)
        return out
