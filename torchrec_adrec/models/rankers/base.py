"""What every ranker model is: a head over looked-up vectors, or several of them.

A ranker orders a few hundred candidates for one user, so it is asked with one row of
the user and many rows of ads. Whatever it computes of the user alone must be computed
once for all of them, by the same code that training runs with as many users as ads: a
served score is then the trained score.

Shape letters: B ads, E the concatenated vectors of a side, F numbers, T labels.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.modules.embeddings import Init
from torchrec_adrec.schema import Schema


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
            model that mixes the sides in its first layer cannot, unless that layer can
            be taken apart (`dcnv2`).
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
            user: (B or 1, E) vectors in the order of `Schema.fields_of`; of a history
                that is read item by item, its L vectors, the oldest first.
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
