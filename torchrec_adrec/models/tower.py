"""One tower: the tables of a side, then a dense part.

The training pipeline traces a model down to its sharded tables. The dense part is a
separate module, which the tracer takes as one leaf, so that Python may branch there.

Shape letters: B rows, E the concatenated vectors of a side, F numbers, D output.
"""

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from torchrec_adrec.batch import ITEMS, TowerInput
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.features_read import encoded_history, ids_read, reads
from torchrec_adrec.modules.embeddings import (
    BIAS_SUFFIX,
    DATA_TYPES,
    WIDTH_STEP,
    bags_without,
    embedding_tables,
    item_table,
    keyed,
    regroup,
    split_items,
)
from torchrec_adrec.modules.gated_sum import GatedSum
from torchrec_adrec.modules.history import (
    AttentionHistory,
    GRUHistory,
    HistoryEncoder,
)
from torchrec_adrec.modules.mlp import mlp
from torchrec_adrec.modules.vector_fields import VectorFields
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
        schema: Schema,
        side: Side,
        config: RetrievalConfig,
        history: HistoryEncoder | None = None,
    ) -> None:
        """Make the layers.

        Args:
            names: the features with looked-up vectors, in order.
            schema: of the batches, all vectors and numbers of which have their place
                there; those that the settings leave out are not read.
            side: whose tower; for the additive score too.
            config: sizes, the fusion and the similarity.
            history: encodes the last of `names`; None: it comes as one vector.
        """
        super().__init__()
        numbers = {
            i: feature.name
            for i, feature in enumerate(schema.dense_of(side))
            if (config.statistics or feature.statistic is None)
            and reads(config, feature.name)
        }
        places = torch.tensor([*numbers], dtype=torch.long)
        self.register_buffer("numbers", places, False)
        vectors = schema.vectors_of(side)
        projected = [f.name for f in vectors if reads(config, f.name)]
        self.vector_fields = VectorFields(vectors, config.embedding_dim, projected)
        fields = [*names, *projected]
        width = len(fields) * config.embedding_dim + len(numbers)
        self.fusion = None
        if config.fusion == "gated":
            width = config.embedding_dim
            self.fusion = GatedSum(fields, [*numbers.values()], width)
        self.names, self.side, self.similarity = names, side, config.similarity
        self.width, self.score_bias, self.history = width, config.score_bias, history
        output_dim = 1 if config.similarity == "additive" else config.output_dim
        if config.projection:
            self.mlp = mlp((width, *config.hidden, output_dim), config.dropout)
        else:
            _refuse_other_than_ids([*projected, *numbers.values()], side)
            self.mlp = nn.Sequential(SumOfVectors(config.embedding_dim))

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Encode vectors (B, E) in the order of features and numbers (B, F), (B, D).

        A history that is read in its order comes as its items' vectors, side by side.
        """
        if self.history is not None:
            others = vectors.shape[1] - self.history.width
            bags, history = vectors.split([others, self.history.width], dim=1)
            vectors = torch.cat([bags, self.history(history)], dim=1)
        projected, dense = self.vector_fields(dense)
        if projected:
            vectors = torch.cat([vectors, *projected], dim=1)
        if dense.shape[1] > len(self.numbers):
            dense = dense.index_select(1, self.numbers)
        join = concat_dense if self.fusion is None else self.fusion
        return self.encode(join(vectors, dense))

    def encode(self, joined: Tensor) -> Tensor:
        """Encode concatenated inputs, (B, E + F), or their sum -> (B, D).

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


def gate_weights(model: nn.Module) -> dict[str, dict[str, float]]:
    """Return each side's gates by field, of towers with gated fusion; else nothing."""
    heads = [module for module in model.modules() if isinstance(module, TowerHead)]
    return {
        str(head.side): head.fusion.weights()
        for head in heads
        if head.fusion is not None
    }


def _refuse_other_than_ids(names: list[str], side: Side) -> None:
    if names:
        raise ConfigError(
            f"retrieval.projection is false, but the {side}'s vectors read"
            f" {', '.join(names)}, numbers which only a layer can turn into a vector;"
            " leave them out by `retrieval.features`, or set projection to true"
        )


class BiasHead(nn.Module):
    """The dense part of a bias tower: one number per row."""

    def __init__(self, names: list[str], dense: int, config: RetrievalConfig) -> None:
        """Make the layers.

        Args:
            names: the features with tables, in order.
            dense: the numbers that are none of a vector: how often a user clicks at
                all is not in a picture.
            config: its dropout alone is read.
        """
        super().__init__()
        self.names, self.dense = names, dense
        self.width = len(names) * BIAS_DIM + dense
        self.mlp = mlp((self.width, BIAS_HIDDEN, 1), config.dropout)

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Compute the bias from vectors (B, E) and numbers (B, F), (B,)."""
        numbers = dense[:, dense.shape[1] - self.dense :]
        out: Tensor = self.mlp(concat_dense(vectors, numbers)).float()
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
        self.tables = embedding_tables(schema, side, BIAS_DIM, device, BIAS_SUFFIX)
        self.head = BiasHead(names, len(schema.dense_of(side)), config)


class Tower(nn.Module):
    """The encoder of one side: `TowerInput` -> (B, D).

    Attributes:
        items: the table that gives the ads their item's vector and the histories
            theirs; of the ad's tower alone, and only where a history is encoded.
    """

    def __init__(
        self,
        schema: Schema,
        side: Side,
        config: RetrievalConfig,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        read = ids_read(schema, side, config)
        dim, key = config.embedding_dim, encoded_history(read, side, config)
        data_type = DATA_TYPES[config.tables_precision]
        self.tables = embedding_tables(
            read, side, dim, device, without=key, data_type=data_type
        )
        self.key, self.length, self.items, history = key, 0, None, None
        names = [f.name for f in read.bags_of(side)]
        if key is not None and side == Side.AD:
            self.items = item_table(read, dim, device, data_type=data_type)
        elif key is not None:
            names = [*(f.name for f in bags_without(read, side, key)), key]
            history = history_encoder(read, config)
            self.length = history.length
        # The head gets the whole schema: a batch has all numbers, read or not.
        self.head = TowerHead(names, schema, side, config, history)

    def forward(self, rows: TowerInput, items: nn.Module | None = None) -> Tensor:
        """Encode the rows of one side.

        Args:
            rows: B of them.
            items: the table of the ad's tower, for users whose history is encoded.
        """
        table, vectors = self.items or items, None
        if self.key is not None:
            assert table is not None, "a user's history is read from the ads' table"
            looked_up, count = table(rows.items)[ITEMS], rows.layout.rows
            if self.length:
                vectors, _ = split_items(looked_up, count, 0, self.length)
            else:
                vectors = looked_up.values()
        joined = self.regroup(self.tables(rows.sparse), vectors)
        encoded: Tensor = self.head(joined, rows.dense)
        return encoded

    def regroup(self, bags: KeyedTensor, items: Tensor | None) -> Tensor:
        """Bring vectors into the order of the head's features, (B, E).

        Args:
            bags: of `tables`.
            items: those of the history, (B, L * D), or of the ads' item, (B, D).
        """
        more = None if items is None else keyed(str(self.key), items)
        return regroup(bags, self.head.names, more)


def history_encoder(schema: Schema, config: RetrievalConfig) -> HistoryEncoder:
    """Make the encoder that the settings name, of the history of a schema."""
    assert schema.history is not None
    length, dim = schema.history.max_length, config.embedding_dim
    settings = config.history
    if settings.encoder == "gru":
        return GRUHistory(length, dim, settings.layers, settings.dropout)
    return AttentionHistory(
        length, dim, settings.layers, settings.heads, settings.dropout
    )
