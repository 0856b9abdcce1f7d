"""A ranker: the tables of both sides under the head of a model.

Shape letters: B ads, E the concatenated vectors of a side, F numbers, T labels.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_adrec.batch import ITEMS, TowerInput, items_of
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.base import Ensemble, RankerHead
from torchrec_adrec.models.rankers.final_logits import FinalLogits
from torchrec_adrec.modules.embeddings import (
    embedding_tables,
    item_table,
    keyed,
    regroup,
    split_items,
)
from torchrec_adrec.modules.vector_fields import VectorFields
from torchrec_adrec.schema import Schema, Side


class Ranker(nn.Module):
    """(user, ad) -> (B, T) logits, one per label: tables of both sides under a head.

    The user's input has as many rows as the ad's, or one row that all ads share.
    """

    def __init__(
        self,
        head: type[RankerHead],
        schema: Schema,
        config: RankingConfig,
        embedding_dim: int,
        device: torch.device | None = None,
    ) -> None:
        """Make the tables, then the head.

        Args:
            head: the model, as `registry.RANKERS` names it.
            schema: names the features, whose order is that of every looked-up vector.
            config: the head's sizes, and whether the tables are frozen.
            embedding_dim: columns of the towers' tables.
            device: where the tables are; meta for tables that are going to be sharded.
        """
        super().__init__()
        schema = schema.joined
        columns = config.embedding_dim or embedding_dim
        self.width = head.table_width(schema, columns)
        width, init = config.seeds * self.width, head.table_init(config)
        self.items, self.length, keys = None, 0, dict.fromkeys(Side)
        if head.reads_items and config.history == "tokens":
            schema = with_history_last(schema)
            assert schema.history is not None
            self.length = schema.history.max_length
            self.items = item_table(schema, width, device, init)
            keys = {side: schema.items_of(side) for side in Side}
        self.keys = keys
        self.user_tables, self.ad_tables = (
            embedding_tables(
                schema, side, width, device, init=init, without=self.keys[side]
            )
            for side in Side
        )
        self.frozen = config.tables == "frozen"
        self.field_dropout = config.field_dropout
        self.names = {s: [f.name for f in schema.bags_of(s)] for s in Side}
        self.vector_fields = nn.ModuleList(
            VectorFields(schema.vectors_of(side), width) for side in Side
        )
        self.head: RankerHead
        if config.seeds == 1:
            self.head = head(schema, config, self.width)
        else:
            self.head = Ensemble(head, schema, config, self.width)
        self.final_logits = FinalLogits(schema.labels, config)

    def forward(self, user: TowerInput, ad: TowerInput) -> Tensor:
        """Score B ads, each for its user or all for one user."""
        items = items_of(user, ad) if self.reads_items else None
        vectors = self.regroup(self.look_up(user, ad, items))
        return self.dense(vectors, user.dense, ad.dense)

    @property
    def reads_items(self) -> bool:
        """Whether histories and ads read one table, id by id."""
        return self.items is not None

    def look_up(
        self, user: TowerInput, ad: TowerInput, items: KeyedJaggedTensor | None = None
    ) -> tuple[Any, ...]:
        """Look up the vectors of both sides.

        Args:
            user, ad: rows of both sides.
            items: of both (`Batch.items`), where `reads_items`.

        Returns:
            Those of the user, the ad, and the items.
        """
        bags = self.user_tables(user.sparse), self.ad_tables(ad.sparse)
        return bags if self.items is None else (*bags, self.items(items))

    def regroup(self, looked_up: Sequence[Any]) -> list[Tensor]:
        """Bring each side's vectors into the order of features, (B, E)."""
        user, ad = looked_up[:2]
        histories = ads = None
        if self.items is not None:
            rows, count = len(user.values()), len(ad.values())
            items = looked_up[2][ITEMS]
            histories, ads = split_items(items, rows, count, self.length)
        return [
            self._in_order(Side.USER, user, histories),
            self._in_order(Side.AD, ad, ads),
        ]

    def vectors_of(self, side: Side, rows: TowerInput) -> Tensor:
        """Look up one side alone, (B, E), as `regroup` orders it."""
        items = None
        if self.items is not None:
            vectors, count = self.items(rows.items)[ITEMS], rows.layout.rows
            items = vectors.values()
            if side == Side.USER:
                items, _ = split_items(vectors, count, 0, self.length)
        tables = self.user_tables if side == Side.USER else self.ad_tables
        return self._in_order(side, tables(rows.sparse), items)

    def _in_order(self, side: Side, bags: KeyedTensor, items: Tensor | None) -> Tensor:
        more = None if items is None else keyed(str(self.keys[side]), items)
        return regroup(bags, self.names[side], more)

    def dense(
        self, vectors: Sequence[Tensor], user_dense: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """Score as `forward` does, from vectors that are looked up and in order."""
        raw = self.head(*self._fields(vectors, user_dense, ad_dense))
        logits: Tensor = self.final_logits(raw)
        return logits

    def members(
        self, vectors: Sequence[Tensor], user_dense: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """Compute the members' raw logits, (members, B, T).

        `dense` is `final_logits` of their mean.
        """
        return self.head.members(*self._fields(vectors, user_dense, ad_dense))

    def _fields(self, vectors: Sequence[Tensor], *dense: Tensor) -> list[Tensor]:
        """Return fields and numbers of both sides, as the head takes them."""
        sides = zip(vectors, dense, self.vector_fields, strict=True)
        parts = [self._as_trained(*side) for side in sides]
        return [tensor for part in parts for tensor in part]

    def _as_trained(
        self, vectors: Tensor, dense: Tensor, project: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Freeze looked-up vectors, add projected ones, drop whole ones in training."""
        if self.frozen:
            # requires_grad=False does not freeze a sharded table; this does.
            vectors = vectors.detach()
        projected, numbers = project(dense)
        if projected:
            vectors = torch.cat([vectors, *projected], dim=1)
        fields = vectors.unflatten(1, (vectors.shape[1] // self.width, self.width))
        kept = F.dropout1d(fields, self.field_dropout, self.training)
        return kept.flatten(1), numbers


def with_history_last(schema: Schema) -> Schema:
    """Return the schema with the history behind all other ids of the user.

    Raises:
        ConfigError: there is no history that could be read item by item.
    """
    if schema.history is None:
        raise ConfigError(
            "ranking.history tokens reads the ids of the ads one by one, and no list of"
            " the users has those: name the ads' column in the data (`history: {of:"
            " item}`), or set mean"
        )
    others = [f for f in schema.sequences if f != schema.history]
    return schema.model_copy(update={"sequences": (*others, schema.history)})
