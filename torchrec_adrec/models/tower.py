"""One tower: the tables of a side, then a dense part.

The pipeline traces a model down to its sharded modules; the dense part is a module of
its own so that the tracer treats it as a leaf and Python may do there what it likes.
"""

import torch
from torch import Tensor, nn

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.modules.embeddings import (
    BIAS_SUFFIX,
    WIDTH_STEP,
    embedding_tables,
    regroup,
)
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.schema import Schema, Side

BIAS_DIM = WIDTH_STEP  # one number is wanted; tables cannot be narrower
BIAS_HIDDEN = 64
SHORTEST = 1e-12  # length that a vector is divided by at least


def l2_normalize(vectors: Tensor) -> Tensor:
    """(B, D) to length 1; 0 stays 0. As `F.normalize`, whose backward takes twice as
    long: it divides where this multiplies.
    """
    squares = (vectors * vectors).sum(dim=1)  # `vecdot` is bfloat16 under autocast
    return vectors * squares.clamp_min(SHORTEST**2).rsqrt()[:, None]


def concat_dense(vectors: Tensor, dense: Tensor) -> Tensor:
    """(B, E) and (B, F) -> (B, E + F); nothing is copied for no features."""
    return torch.cat([vectors, dense], dim=1) if dense.shape[1] else vectors


class TowerHead(nn.Module):
    """Looked-up vectors and dense features to one vector per row.

    Args:
        names: the features, in order.
        width: columns of their vectors and of the dense features together.
    """

    def __init__(
        self, names: list[str], width: int, side: Side, config: RetrievalConfig
    ) -> None:
        super().__init__()
        self.names, self.side, self.similarity = names, side, config.similarity
        own = 1 if config.similarity == "additive" else config.output_dim
        self.mlp = mlp((width, *config.hidden, own), config.dropout)

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Vectors (B, E) of the side's features in order, (B, F) floats -> (B, D)."""
        return self.encode(concat_dense(vectors, dense))

    def encode(self, joined: Tensor) -> Tensor:
        """(B, width) -> (B, D); what `train.compile` compiles."""
        # Lengths and scores are float32 also where the products are not.
        out: Tensor = self.mlp(joined).float()
        if self.similarity == "cosine":
            return l2_normalize(out)
        if self.similarity == "additive":  # (f, 1) . (1, g) = f + g
            pair = (out, torch.ones_like(out))
            return torch.cat(pair if self.side == Side.USER else pair[::-1], dim=1)
        return out


class BiasHead(nn.Module):
    """The same of narrow tables, to one number per row."""

    def __init__(self, names: list[str], width: int, config: RetrievalConfig) -> None:
        super().__init__()
        self.names = names
        self.mlp = mlp((width, BIAS_HIDDEN, 1), config.dropout)

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """-> (B,)."""
        out: Tensor = self.mlp(concat_dense(vectors, dense)).float()
        return out[:, 0]


class BiasTower(nn.Module):
    """A number per row from tables of its own, which the contrast does not touch."""

    def __init__(
        self,
        schema: Schema,
        side: Side,
        config: RetrievalConfig,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        names = [f.name for f in schema.bags_of(side)]
        width = len(names) * BIAS_DIM + len(schema.dense_of(side))
        self.tables = embedding_tables(schema, side, BIAS_DIM, device, BIAS_SUFFIX)
        self.head = BiasHead(names, width, config)


class Tower(nn.Module):
    """`TowerInput` of one side -> (B, D)."""

    def __init__(
        self,
        schema: Schema,
        side: Side,
        config: RetrievalConfig,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        names = [f.name for f in schema.bags_of(side)]
        width = len(names) * config.embedding_dim + len(schema.dense_of(side))
        self.tables = embedding_tables(schema, side, config.embedding_dim, device)
        self.head = TowerHead(names, width, side, config)

    def forward(self, rows: TowerInput) -> Tensor:
        """Encode one side."""
        looked_up = regroup(self.tables(rows.sparse), self.head.names)
        vectors: Tensor = self.head(looked_up, rows.dense)
        return vectors
