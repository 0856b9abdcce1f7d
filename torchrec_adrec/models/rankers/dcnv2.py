"""DCNv2: explicit crosses beside a deep part.

Source: Wang et al., DCN V2, WWW 2021 (arXiv:2008.13535), the parallel form with
low-rank cross layers.

Shape letters: B ads, F features of both sides, D columns of a table, N numbers of both
sides, T labels, W columns of vectors and numbers side by side, R rank of a cross layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.joined import JoinedHead
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.schema import Schema


class DCNv2Head(JoinedHead):
    """Cross layers and hidden layers, read together by one linear layer."""

    shares_user = True

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

    def forward(
        self, user: Tensor, user_dense: Tensor, ad: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """See `RankerHead`."""
        layers: Any = self.deep[0]
        first = layers[0]
        # The engines that round have layers of other types, which are not taken apart.
        is_exact = isinstance(first, nn.Linear) and first.weight.dtype == torch.float32
        if len(user) == 1 < len(ad) and is_exact:
            return self.of_one_user((user, user_dense), (ad, ad_dense)).float()
        return super().forward(user, user_dense, ad, ad_dense)

    def mix(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """See `JoinedHead`."""
        joined = torch.cat([vectors.flatten(1), numbers], dim=1)
        both = torch.cat([self.cross(joined), self.deep(joined)], dim=1)
        logits: Tensor = self.out(both)
        return logits

    def of_one_user(self, user: Sequence[Tensor], ad: Sequence[Tensor]) -> Tensor:
        """Compute what `mix` does for ads of one user, whose part is computed once.

        Args:
            user: vectors and numbers, one row each.
            ad: vectors and numbers, B rows each.

        Returns:
            (B, T).
        """
        widths = [x.shape[1] for pair in zip(user, ad, strict=True) for x in pair]
        layers: Any = self.deep[0]
        of_user, of_ad = _sides(layers[0].weight, widths)
        hidden = _linear(ad, of_ad) + (_linear(user, of_user) + layers[0].bias)
        deep = self.deep[1:](layers[1:](hidden))
        of_cross, of_deep = self.out.weight.split([self.width, deep.shape[1]], dim=1)
        crossed = self._crossed(user, ad, of_cross, widths)
        return crossed + F.linear(deep, of_deep, self.out.bias)

    def _crossed(
        self,
        user: Sequence[Tensor],
        ad: Sequence[Tensor],
        out: Tensor,
        widths: list[int],
    ) -> Tensor:
        """Compute what `out` (T, W) reads of the cross layers, (B, T).

        A layer adds x0 * (U z + b) to its input x, where z = V x are R numbers an ad.
        In the user's columns x0 = u is the same for all ads, so that x is u times (1 +
        the sum of all b + the sum of all U z) there. What the next V reads of them is
        a row for all ads, and a matrix of R x R times each z: the user's columns are
        never written out for an ad.
        """
        columns, gains = list(ad), [torch.ones_like(x) for x in user]
        inner: list[tuple[Tensor, list[Tensor]]] = []
        net = self.cross
        layers = zip(net.V_kernels, net.W_kernels, net.bias, strict=True)

        def read(reader: Tensor) -> Tensor:
            of_user, of_ad = _sides(reader, widths)
            weighted = [w * x for w, x in zip(of_user, user, strict=True)]
            z = _linear(columns, of_ad) + _linear(gains, weighted)
            for before, kernels in inner:
                vectors, numbers = map(torch.matmul, weighted, kernels)
                z = z + F.linear(before, vectors + numbers)
            return z

        for reader, kernel, bias in layers:
            z = read(reader)
            of_user, of_ad = _sides(kernel, widths, 0)
            user_bias, ad_bias = _sides(bias, widths, 0)
            inner.append((z, of_user))
            gains = [g + b for g, b in zip(gains, user_bias, strict=True)]
            added = map(F.linear, [z, z], of_ad, ad_bias)
            columns = [x + x0 * w for x, x0, w in zip(columns, ad, added, strict=True)]
        return read(out)


def _sides(
    weight: Tensor, widths: list[int], dim: int = -1
) -> tuple[list[Tensor], list[Tensor]]:
    """Take the user's part of W columns apart from the ad's, vectors and numbers."""
    parts = weight.split(widths, dim)
    return list(parts[::2]), list(parts[1::2])


def _linear(columns: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Multiply columns that stand in two tensors: (B, W) -> (B, R)."""
    vectors, numbers = map(F.linear, columns, weights)
    return vectors + numbers
