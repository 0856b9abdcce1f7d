"""One tower: the tables of a side, then a dense part.

The training pipeline traces a model down to its sharded tables. The dense part is a
separate module, which the tracer takes as one leaf, so that Python may branch there.

Shape letters: B rows, E the concatenated vectors of a side, F numbers, D output.
"""

import torch
from torch import Tensor, nn

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.modules.embeddings import (
    BIAS_SUFFIX,
    DATA_TYPES,
    WIDTH_STEP,
    embedding_tables,
    regroup,
)
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.schema import Schema, Side

BIAS_DIM = WIDTH_STEP  # one number is wanted; tables cannot be narrower
BIAS_HIDDEN = 64
MIN_LENGTH = 1e-12  # a shorter vector is divided by this


def l2_normalize(vectors: Tensor) -> Tensor:
    """Scale vectors (B, D) to length 1; a vector of zeros stays as it is.

    The result is that of `F.normalize`, whose backward takes twice as long because it
    divides where this multiplies.
    """
    # Not `vecdot`: under autocast its sums are bfloat16.
    squares = (vectors * vectors).sum(dim=1)
    return vectors * squares.clamp_min(MIN_LENGTH**2).rsqrt()[:, None]


def concat_dense(vectors: Tensor, dense: Tensor) -> Tensor:
    """Concatenate (B, E) and (B, F); without numbers nothing is copied."""
    return torch.cat([vectors, dense], dim=1) if dense.shape[1] else vectors


class TowerHead(nn.Module):
    """The dense part of a tower: looked-up vectors and numbers to (B, D)."""

    numbers: Tensor

    def __init__(
        self,
        names: list[str],
        numbers: list[int],
        side: Side,
        config: RetrievalConfig,
    ) -> None:
        """Make the layers.

        Args:
            names: the features with tables, in order.
            numbers: the places of the numbers that are read, among all of the side.
            side: whose tower; it matters for the additive score alone.
            config: sizes and the similarity.
        """
        super().__init__()
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long), False)
        width = len(names) * config.embedding_dim + len(numbers)
        self.names, self.side, self.similarity = names, side, config.similarity
        self.width, self.score_bias = width, config.score_bias
        output_dim = 1 if config.similarity == "additive" else config.output_dim
        if config.projection:
            self.mlp = mlp((width, *config.hidden, output_dim), config.dropout)
        else:
            _refuse_numbers(numbers, side)
            self.mlp = nn.Sequential(SumOfVectors(config.embedding_dim))

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Encode vectors (B, E) in the order of features and numbers (B, F), (B, D)."""
        if dense.shape[1] > len(self.numbers):
            dense = dense.index_select(1, self.numbers)
        return self.encode(concat_dense(vectors, dense))

    def encode(self, joined: Tensor) -> Tensor:
        """Encode concatenated inputs, (B, E + F) -> (B, D).

        This is what `train.compile` compiles.
        """
        # Lengths and scores are float32 also where the products are not.
        out: Tensor = self.mlp(joined).float()
        if self.similarity == "cosine":
            return l2_normalize(out)
        if self.similarity == "additive":
            # (f, 1) . (1, g) = f + g: the index knows inner products alone.
            pair = (out, torch.ones_like(out))
            return torch.cat(pair if self.side == Side.USER else pair[::-1], dim=1)
        if self.score_bias and self.side == Side.USER:
            return torch.cat([out[:, :-1], torch.ones_like(out[:, -1:])], dim=1)
        return out


class SumOfVectors(nn.Module):
    """The sum of the looked-up vectors of a side, without any parameter."""

    def __init__(self, width: int) -> None:
        """Keep the width of each of them, D."""
        super().__init__()
        self.width = width

    def forward(self, joined: Tensor) -> Tensor:
        """Add (B, F * D) up, (B, D)."""
        return joined.view(len(joined), -1, self.width).sum(dim=1)


def _refuse_numbers(numbers: list[int], side: Side) -> None:
    if numbers:
        raise ConfigError(
            f"retrieval.projection is false, but the {side}'s vectors read"
            f" {len(numbers)} numbers, which only a layer can turn into a vector; leave"
            " them out by `retrieval.features`, or set projection to true"
        )


class BiasHead(nn.Module):
    """The dense part of a bias tower: one number per row."""

    def __init__(self, names: list[str], width: int, config: RetrievalConfig) -> None:
        """Make the layers.

        Args:
            names: the features with tables, in order.
            width: E + F.
            config: its dropout alone is read.
        """
        super().__init__()
        self.names, self.width = names, width
        self.mlp = mlp((width, BIAS_HIDDEN, 1), config.dropout)

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Compute the bias from vectors (B, E) and numbers (B, F), (B,)."""
        out: Tensor = self.mlp(concat_dense(vectors, dense)).float()
        return out[:, 0]


class BiasTower(nn.Module):
    """A number per row, from separate tables that the contrast does not train."""

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
    """The encoder of one side: `TowerInput` -> (B, D)."""

    def __init__(
        self,
        schema: Schema,
        side: Side,
        config: RetrievalConfig,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        # Numbers come as one matrix of all, so their places are those in the data.
        numbers = [
            i
            for i, feature in enumerate(schema.dense_of(side))
            if (config.statistics or feature.statistic is None)
            and reads(config, feature.name)
        ]
        schema = ids_read(schema, side, config)
        names = [f.name for f in schema.bags_of(side)]
        self.tables = embedding_tables(
            schema,
            side,
            config.embedding_dim,
            device,
            data_type=DATA_TYPES[config.tables_precision],
        )
        self.head = TowerHead(names, numbers, side, config)

    def forward(self, rows: TowerInput) -> Tensor:
        """Encode the rows of one side."""
        looked_up = regroup(self.tables(rows.sparse), self.head.names)
        vectors: Tensor = self.head(looked_up, rows.dense)
        return vectors


def reads(config: RetrievalConfig, name: str) -> bool:
    """Whether the vectors read a feature."""
    return config.features is None or name in config.features


def ids_read(schema: Schema, side: Side, config: RetrievalConfig) -> Schema:
    """Return the schema with those ids alone that the vectors read.

    Args:
        schema: of the data.
        side: which must have a feature that is read.
        config: names the features.

    Raises:
        ConfigError: it names what is no feature, or nothing of this side.
    """
    if config.features is None:
        return schema
    known = {f.name for f in (*schema.dense, *schema.bags)}
    lost = sorted(set(config.features) - known)
    if lost:
        raise ConfigError(
            f"retrieval.features: {', '.join(lost)} are no features of the data, which"
            f" has {', '.join(sorted(known))}"
        )
    of_side = (*schema.dense_of(side), *schema.bags_of(side))
    if not any(reads(config, f.name) for f in of_side):
        raise ConfigError(
            f"retrieval.features {list(config.features)} names no feature of the"
            f" {side}, expected one of {', '.join(f.name for f in of_side)}"
        )
    return schema.model_copy(
        update={
            "sparse": tuple(f for f in schema.sparse if reads(config, f.name)),
            "sequences": tuple(f for f in schema.sequences if reads(config, f.name)),
        }
    )
