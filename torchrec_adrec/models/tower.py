"""One tower: the tables of a side, then a dense part.

The pipeline traces a model down to its sharded modules; the dense part is a module of
its own so that the tracer treats it as a leaf and Python may do there what it likes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.modules.embeddings import embedding_tables, in_order
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.schema import Schema, Side


class TowerHead(nn.Module):
    """Looked-up vectors and dense features to one vector per row."""

    def __init__(
        self, names: list[str], sizes: Sequence[int], dropout: float, normalize: bool
    ) -> None:
        super().__init__()
        self.names, self.normalize = names, normalize
        self.mlp = mlp(sizes, dropout)

    def forward(self, vectors: KeyedTensor, dense: Tensor) -> Tensor:
        """`vectors` of the side's features and (B, F) floats -> (B, D)."""
        joined = torch.cat([in_order(vectors, self.names), dense], dim=1)
        out: Tensor = self.mlp(joined)
        return F.normalize(out, dim=1) if self.normalize else out


class Tower(nn.Module):
    """`TowerInput` of one side -> (B, D)."""

    def __init__(
        self,
        schema: Schema,
        side: Side,
        embedding_dim: int,
        hidden: Sequence[int],
        output_dim: int,
        dropout: float,
        normalize: bool,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        names = [f.name for f in schema.bags_of(side)]
        width = len(names) * embedding_dim + len(schema.dense_of(side))
        self.tables = embedding_tables(schema, side, embedding_dim, device)
        self.head = TowerHead(names, (width, *hidden, output_dim), dropout, normalize)

    def forward(self, rows: TowerInput) -> Tensor:
        """Encode one side."""
        vectors: Tensor = self.head(self.tables(rows.sparse), rows.dense)
        return vectors
