"""Logistic regression: one weight per id and one per number, for every label.

It is the baseline that a ranker with interactions must beat, trained by the same
trainer on the same sharded tables. Value labels are regressed alike, on a log scale:
what a logit means is the label's kind (`tasks.label_heads`), not the model's.

Shape letters: B rows, F features of a side, T labels, W columns of a table.
"""

import torch
from torch import Tensor, nn

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.base import RankerHead
from torchrec_adrec.modules.embeddings import WIDTH_STEP, Init
from torchrec_adrec.schema import Schema, Side


class LogisticHead(RankerHead):
    """logit_t = bias_t + sum of weight_t[id] over all ids + sum of weight_t * number.

    The weights of an id stand in its table's row, one column per label. A history adds
    the mean of its ids' weights.
    """

    # A row of the towers' tables is a vector, and not a weight per label.
    warm_starts = False

    def __init__(self, schema: Schema, config: RankingConfig, width: int) -> None:
        """Make the weights of the numbers, and the bias.

        Args:
            schema: names features and labels.
            config: only `tables` is read.
            width: of the tables.

        Raises:
            ConfigError: `ranking.tables` is frozen, and the tables are all weights.
        """
        super().__init__(schema, config, width)
        if config.tables == "frozen":
            raise ConfigError(
                "ranking.tables=frozen with ranking.model=lr: the tables hold the"
                " weights that it learns; set ranking.tables=scratch"
            )
        self.width, self.labels = width, len(schema.labels)
        counts = [len(schema.dense_of(side)) for side in Side]
        self.user_weight, self.ad_weight = (
            nn.Parameter(torch.zeros(count, self.labels)) for count in counts
        )
        self.bias = nn.Parameter(torch.zeros(self.labels))

    @staticmethod
    def table_width(schema: Schema, embedding_dim: int) -> int:
        """One column per label, and as many as FBGEMM's kernels take.

        The columns beyond the labels are never read, so they stay 0.
        """
        return -(-len(schema.labels) // WIDTH_STEP) * WIDTH_STEP

    @staticmethod
    def table_init(config: RankingConfig) -> Init:
        """Zeros, as usual for a regression without a hidden layer.

        An id that training never showed then says nothing, where a random start would
        be kept as noise for ever.
        """
        return nn.init.zeros_

    def forward(
        self, user: Tensor, user_dense: Tensor, ad: Tensor, ad_dense: Tensor
    ) -> Tensor:
        """See `RankerHead`."""
        of_user = self._ids(user) + user_dense @ self.user_weight
        of_ad = self._ids(ad) + ad_dense @ self.ad_weight
        logits: Tensor = (of_user + self.bias).float() + of_ad.float()
        return logits

    def _ids(self, vectors: Tensor) -> Tensor:
        """(B, F * W) weights of the ids -> (B, T), their sums."""
        weights = vectors.view(len(vectors), -1, self.width)
        return weights.sum(dim=1)[:, : self.labels]
