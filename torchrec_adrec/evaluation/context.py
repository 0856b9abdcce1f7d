"""A baseline that knows which ads are shown in which context, and nothing of clicks.

It is a naive Bayes on the training impressions, over the user's ids:

    score(ad | x) = log p(ad) + weight * sum over columns c of
                    log((n(ad, x_c) + a p(x_c)) / (n(ad) + a)) - log p(x_c)

p(x_c) is the same for all ads, so subtracting it changes no order. Then a pair that was
never shown contributes a number that depends on n(ad) alone, and the scores of some
queries are one sparse product and a vector. Columns are not independent, which `weight`
below 1 makes up for. It and `a` are chosen on the valid split.

Shape letters: Q queries, C columns, V (column, value) pairs, n ads of this rank.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.exact_search import ad_blocks, search
from torchrec_adrec.evaluation.shown import shown_rows
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.schema import AD_ID, Schema, Side

MAX_ROWS = 2_000_000  # the latest training rows; each is C entries in memory
SMOOTHINGS = (1.0, 10.0, 100.0, 1000.0)
WEIGHTS = (0.1, 0.2, 0.4, 0.7, 1.0)
MAX_TUNING = 500  # clicks of the valid split; all pairs of the two are tried


@dataclass(frozen=True)
class ImpressionCounts:
    """Counts of training impressions.

    Attributes:
        pairs: (V, n) of a (column, value) with an ad.
        values: (V,) of a (column, value) with any ad; of one column they sum to `rows`.
        ads: (n,) of an ad.
        columns: the user's id columns, whose first rows are `starts`.
        first: position in the catalog of the first ad.
    """

    pairs: csr_matrix
    values: Int64s
    ads: Int64s
    columns: tuple[str, ...]
    starts: Int64s
    rows: int
    first: int

    @classmethod
    def count(
        cls, data: Path, schema: Schema, ids: Int64s, local: slice
    ) -> "ImpressionCounts":
        """Count the latest training rows, for this rank's share of the ads.

        Args:
            data: a prepared data set.
            schema: its columns.
            ids: of all ads in catalog order.
            local: this rank's share of them.
        """
        columns = tuple(f.name for f in schema.sparse_of(Side.USER))
        sizes = [f.num_embeddings for f in schema.sparse_of(Side.USER)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        train = shown_rows(data, schema).select(*columns, AD_ID)
        rows = train.tail(MAX_ROWS).collect()
        ad = np.searchsorted(ids, rows[AD_ID].to_numpy())
        is_local = (ad >= local.start) & (ad < local.stop)
        local_ad = ad[is_local] - local.start
        counts = np.bincount(local_ad, minlength=local.stop - local.start)
        values = np.zeros(int(starts[-1]), dtype=np.int64)
        # Without any id there is nothing but how often each ad was shown.
        pairs = [csr_matrix((0, len(counts)))]
        for name, start, end in zip(columns, starts[:-1], starts[1:], strict=True):
            value = rows[name].to_numpy()
            values[start:end] = np.bincount(value, minlength=end - start)
            # A sparse matrix adds up the ones of equal coordinates: it counts.
            ones = (np.ones(len(local_ad)), (value[is_local], local_ad))
            pairs.append(csr_matrix(ones, shape=(end - start, len(counts))))
        return cls(
            vstack(pairs, format="csr"),
            values,
            counts,
            columns,
            starts[:-1],
            len(rows),
            local.start,
        )

    def one_hot(self, users: pl.DataFrame) -> csr_matrix:
        """Mark the values that each user has, (Q, V)."""
        columns = [users[name].to_numpy() for name in self.columns]
        ids = np.reshape(columns, (len(columns), len(users))).T + self.starts
        pointers = np.arange(len(users) + 1) * ids.shape[1]
        parts = (np.ones(ids.size), ids.ravel(), pointers)
        return csr_matrix(parts, shape=(len(users), len(self.values)))


@dataclass(frozen=True)
class TunedSmoothing:
    """The constants `a` and `weight`, and how they were chosen.

    Attributes:
        ndcg: mean of 1 / log2(1 + rank) over the `clicks` of the valid split: the gain
            over the whole catalog, without a cut. None: the split has no click, and the
            two are not chosen but set.
    """

    smoothing: float
    weight: float
    clicks: int
    ndcg: float | None


@dataclass(frozen=True)
class ContextBaseline:
    """Scores some users, given by their values, against this rank's ads.

    Attributes:
        hot: (Q, V) which values each user has.
        prior: (n,) log p(ad); an ad that was never shown counts as shown once.
        unseen: (n,) what an ad's score loses if no value of a user was ever shown with
            it, for all columns together.
        evidence: (n, V) what each value adds to that for each ad.
        blocks: the same as (V, b) for each block of ads, by its start.
        first: position in the catalog of this rank's first ad.
    """

    hot: csr_matrix
    prior: Float64s
    unseen: Float64s
    evidence: csr_matrix
    blocks: dict[int, csr_matrix]
    first: int
    weight: float

    @classmethod
    def of(
        cls, shown: ImpressionCounts, hot: csr_matrix, smoothing: float, weight: float
    ) -> "ContextBaseline":
        """Make the scorer of some users.

        Args:
            shown: the counts.
            hot: (Q, V), see `ImpressionCounts.one_hot`.
            smoothing: `a`, in impressions.
            weight: of the columns.
        """
        pairs = shown.pairs.tocoo()
        # log((n + a p) / (a p)) is 0 where n is: only pairs that were shown are stored.
        expected = smoothing * shown.values[pairs.row] / shown.rows
        evidence = csr_matrix(
            (np.log1p(pairs.data / expected), (pairs.row, pairs.col)), shape=pairs.shape
        )
        return cls(
            hot,
            np.log((shown.ads + 1) / shown.rows),
            len(shown.columns) * np.log1p(shown.ads / smoothing),
            evidence.T.tocsr(),
            {ads.start: evidence[:, ads] for ads in ad_blocks(len(shown.ads))},
            shown.first,
            weight,
        )

    @property
    def count(self) -> int:
        """The number of this rank's ads."""
        return len(self.prior)

    def block(self, queries: slice, ads: slice) -> Tensor:
        """See `BlockScorer`."""
        evidence = (self.hot[queries] @ self.blocks[ads.start]).toarray()
        scores = self.prior[ads] + self.weight * (evidence - self.unseen[ads])
        return torch.from_numpy(scores)

    def pairs(self, queries: Int64s, ads: Int64s) -> Tensor:
        """See `BlockScorer`."""
        evidence = self.evidence[ads].multiply(self.hot[queries]).sum(axis=1)
        evidence = np.asarray(evidence).ravel() - self.unseen[ads]
        return torch.from_numpy(self.prior[ads] + self.weight * evidence)


def choose(
    shown: ImpressionCounts, users: pl.DataFrame, clicked: Int64s, process: Process
) -> TunedSmoothing:
    """Choose `a` and `weight` that rank the clicks of the valid split highest.

    Collective.

    Args:
        shown: the training impressions.
        users: (Q,) rows of the valid split that were clicked.
        clicked: (Q,) positions of their ads in the catalog.
        process: this rank.
    """
    if not len(users):
        return TunedSmoothing(SMOOTHINGS[1], WEIGHTS[1], 0, None)
    hot, choices = shown.one_hot(users), []
    steps = len(SMOOTHINGS) * len(WEIGHTS)
    with Progress("tuning the context baseline", steps) as progress:
        for smoothing in SMOOTHINGS:
            context = ContextBaseline.of(shown, hot, smoothing, 1.0)
            for weight in WEIGHTS:
                scorer = replace(context, weight=weight)
                ranks = search(scorer, clicked, 1, process).ranks
                gain = float((1 / np.log2(1 + ranks)).mean())
                choices.append(TunedSmoothing(smoothing, weight, len(users), gain))
                progress.advance(1)
    return max(choices, key=lambda choice: choice.ndcg or 0.0)
