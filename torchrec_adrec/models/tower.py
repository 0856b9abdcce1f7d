"""One tower: the tables of a side, then a dense part.

The pipeline traces a model down to its sharded modules; the dense part is a module of
its own so that the tracer treats it as a leaf and Python may do there what it likes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.modules.embeddings import embedding_tables, in_order
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.train_config import TowersConfig


class TowerHead(nn.Module):
    """Looked-up vectors and dense features to one vector per row, and its bias.

    Args:
        names: the features, in order.
        width: columns of their vectors and of the dense features together.
    """

    def __init__(
        self, names: list[str], width: int, side: Side, config: TowersConfig
    ) -> None:
        super().__init__()
        self.names, self.side, self.similarity = names, side, config.similarity
        self.biased = config.user_bias and side == Side.USER
        own = 1 if config.similarity == "additive" else config.output_dim
        sizes = (width, *config.hidden, own + self.biased)
        self.mlp = mlp(sizes, config.dropout)

    def forward(self, vectors: KeyedTensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """`vectors` of the side's features and (B, F) floats -> (B, D), (B,)."""
        joined = torch.cat([in_order(vectors, self.names), dense], dim=1)
        # Lengths and scores are float32 also where the products are not.
        out: Tensor = self.mlp(joined).float()
        bias = out[:, -1] if self.biased else out.new_zeros(len(out))
        return self._vectors(out[:, :-1] if self.biased else out), bias

    def _vectors(self, out: Tensor) -> Tensor:
        if self.similarity == "cosine":
            return F.normalize(out, dim=1)
        if self.similarity == "additive":  # (f, 1) . (1, g) = f + g
            pair = (out, torch.ones_like(out))
            return torch.cat(pair if self.side == Side.USER else pair[::-1], dim=1)
        return out


class Tower(nn.Module):
    """`TowerInput` of one side -> (B, D)."""

    def __init__(
        self,
        schema: Schema,
        side: Side,
        config: TowersConfig,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        names = [f.name for f in schema.bags_of(side)]
        width = len(names) * config.embedding_dim + len(schema.dense_of(side))
        self.tables = embedding_tables(schema, side, config.embedding_dim, device)
        self.head = TowerHead(names, width, side, config)

    def forward(self, rows: TowerInput) -> Tensor:
        """Encode one side."""
        return self.outputs(rows)[0]

    def outputs(self, rows: TowerInput) -> tuple[Tensor, Tensor]:
        """The vectors (B, D), and what is added to each row's logit (B,)."""
        found = self.head(self.tables(rows.sparse), rows.dense)
        return found[0], found[1]
