"""What every ranker model shares: tables, the order of features, and its shape.

A ranker orders a few hundred candidates for one user, so it is asked with one row of
the user and many rows of ads. Whatever it computes of the user alone must be computed
once for all of them, by the same code that training runs with as many users as ads: a
served score is then the trained score.

Shape letters: B ads, E the concatenated vectors of a side, F numbers, T labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from torchrec_adrec.batch import ITEMS, TowerInput, items_of
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.final_logits import FinalLogits
from torchrec_adrec.modules.embeddings import (
    Init,
    embedding_tables,
    item_table,
    keyed,
    regroup,
    split_items,
)
from torchrec_adrec.schema import Schema, Side


class RankerHead(nn.Module, ABC):
    """The dense part of a ranker: everything between its tables and its logits.

    It is a module of its own because the training pipeline traces a model down to its
    sharded tables and takes what follows as one leaf, in which Python may branch. A
    ranker model is a head in a file of its own, and a name in `registry`:

        class MeanHead(RankerHead):
            def __init__(self, schema, config, width):
                super().__init__()
                self.out = nn.Linear(2 * width, len(schema.labels))

    Attributes:
        warm_starts: whether the tables are those of the towers in shape and meaning,
            so that `ranking.tables` may take them from the retrieval checkpoint.
        shares_user: whether a request computes its user's part once for all ads. A
            model that mixes the sides in its first layer cannot.
        reads_items: whether it takes the history's items one by one
            (`ranking.history: tokens`), not their mean.
    """

    warm_starts: ClassVar[bool] = True
    shares_user: ClassVar[bool] = True
    reads_items: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, schema: Schema, config: RankingConfig, width: int) -> None:
        """Make the layers.

        Args:
            schema: features and labels.
            config: sizes.
            width: columns of each table.
        """
        super().__init__()

    @staticmethod
    def table_width(schema: Schema, embedding_dim: int) -> int:
        """Columns of each table; by default those of the towers' tables."""
        return embedding_dim

    @staticmethod
    def table_init(config: RankingConfig) -> Init | None:
        """What fills a new table; None: TorchRec's uniform numbers."""
        if config.table_init is None:
            return None
        return partial(nn.init.normal_, std=config.table_init)

    @abstractmethod
    def forward(
        self, user: Tensor, user_dense: Tensor, ad: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """Turn looked-up vectors and numbers of both sides into logits.

        Args:
            user: (B or 1, E) vectors in the order of the schema's features; of a
                history that is read item by item, its L vectors, the oldest first.
            user_dense: (B or 1, F) numbers.
            ad: (B, E).
            ad_dense: (B, F).

        Returns:
            (B, T) float32 logits, one column per label. float32 under autocast too:
            a logit of 8 bits would tie candidates that training told apart.
        """

    def members(
        self, user: Tensor, user_dense: Tensor, ad: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """The logits that are trained, one loss each: (members, B, T).

        `forward` is their mean; a single head has one member.
        """
        logits: Tensor = self(user, user_dense, ad, ad_dense)
        return logits[None]


class Ensemble(RankerHead):
    """The mean of several heads, each with weights and table columns of its own.

    They share the rows of every step, the lookup, and the row-wise state of the tables'
    optimizer, which is the mean over the members' columns. The mean of logits needs no
    word of what a label is; a value's prediction is then the geometric mean.

    Source: Lakshminarayanan et al., deep ensembles, NeurIPS 2017 (arXiv:1612.01474).
    """

    def __init__(
        self,
        head: type[RankerHead],
        schema: Schema,
        config: RankingConfig,
        width: int,
    ) -> None:
        """Make the members.

        Args:
            head: the model.
            schema: features and labels.
            config: sizes, and the number of members.
            width: columns of each table that a member has for itself.
        """
        super().__init__(schema, config, width)
        self.heads = nn.ModuleList(
            head(schema, config, width) for _ in range(config.seeds)
        )
        self.width = width

    def forward(
        self, user: Tensor, user_dense: Tensor, ad: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """See `RankerHead`."""
        return self.members(user, user_dense, ad, ad_dense).mean(dim=0)

    def members(
        self, user: Tensor, user_dense: Tensor, ad: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """See `RankerHead`."""
        pairs = zip(self._parts(user), self._parts(ad), strict=True)
        return torch.stack(
            [
                head(of_user, user_dense, of_ad, ad_dense)
                for head, (of_user, of_ad) in zip(self.heads, pairs, strict=True)
            ]
        )

    def _parts(self, vectors: Tensor) -> list[Tensor]:
        """Each member's columns, (B, E), of all features' vectors side by side."""
        fields = vectors.view(len(vectors), -1, len(self.heads), self.width)
        return [part.flatten(1) for part in fields.unbind(dim=2)]


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
        user, ad = map(self._as_trained, vectors)
        raw = self.head(user, user_dense, ad, ad_dense)
        logits: Tensor = self.final_logits(raw)
        return logits

    def members(
        self, vectors: Sequence[Tensor], user_dense: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """Compute the members' raw logits, (members, B, T).

        `dense` is `final_logits` of their mean.
        """
        user, ad = map(self._as_trained, vectors)
        return self.head.members(user, user_dense, ad, ad_dense)

    def _as_trained(self, vectors: Tensor) -> Tensor:
        """Freeze looked-up vectors, or drop whole ones in training."""
        if self.frozen:
            # requires_grad=False does not freeze a sharded table; this does.
            vectors = vectors.detach()
        fields = vectors.unflatten(1, (vectors.shape[1] // self.width, self.width))
        return F.dropout1d(fields, self.field_dropout, self.training).flatten(1)


def with_history_last(schema: Schema) -> Schema:
    """Return the schema with the history behind all other features of the user.

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
