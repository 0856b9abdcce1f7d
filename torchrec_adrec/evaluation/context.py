"""What the user's context alone tells of which ad is shown: nothing learnt of clicks.

A naive Bayes on the training impressions, over the user's ids:

    score(ad | x) = log p(ad) + weight * sum over columns c of
                    log((n(ad, x_c) + a p(x_c)) / (n(ad) + a)) - log p(x_c)

p(x_c) is the same for all ads, so what it takes away changes no order; with it a pair
that was never shown adds nothing but what the ad's own n(ad) adds. So the scores of
some queries are one sparse product and a vector. Columns are not independent: `weight`
below 1 says how much less than that they tell. It and `a` are chosen on the valid
split.

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
        first: place in the catalog of the first ad.
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
        cls, data: Path, schema: Schema, ids: Int64s, own: slice
    ) -> "ImpressionCounts":
        """Of the latest training rows, with this rank's share of the ads.

        Args:
            ids: of all ads in catalog order.
            own: this rank's.
        """
        columns = tuple(f.name for f in schema.sparse_of(Side.USER))
        sizes = [f.num_embeddings for f in schema.sparse_of(Side.USER)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        train = pl.scan_parquet(data / "train/*.parquet").select(*columns, AD_ID)
        rows = train.tail(MAX_ROWS).collect()
        ad = np.searchsorted(ids, rows[AD_ID].to_numpy())
        mine = (ad >= own.start) & (ad < own.stop)
        counts = np.bincount(ad[mine] - own.start, minlength=own.stop - own.start)
        values = np.zeros(int(starts[-1]), dtype=np.int64)
        pairs = []
        for name, start, end in zip(columns, starts[:-1], starts[1:], strict=True):
            value = rows[name].to_numpy()
            values[start:end] = np.bincount(value, minlength=end - start)
            at = (np.ones(mine.sum()), (value[mine], ad[mine] - own.start))
            # Equal places are summed up when it is made.
            pairs.append(csr_matrix(at, shape=(end - start, len(counts))))
        found = vstack(pairs, format="csr")
        return cls(found, values, counts, columns, starts[:-1], len(rows), own.start)

    def one_hot(self, users: pl.DataFrame) -> csr_matrix:
        """(Q, V): which values each user has."""
        ids = users.select(self.columns).to_numpy() + self.starts
        pointers = np.arange(0, ids.size + 1, ids.shape[1])
        parts = (np.ones(ids.size), ids.ravel(), pointers)
        return csr_matrix(parts, shape=(len(users), len(self.values)))


@dataclass(frozen=True)
class TunedSmoothing:
    """`a` and `weight`, and how they were found.

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
        own: (n,) what is taken away for all columns together.
        of_ad: (n, V) what each value tells of each ad.
        blocks: the same as (V, b) for each block of ads, by its start.
        first: place in the catalog of this rank's first ad.
    """

    hot: csr_matrix
    prior: Float64s
    own: Float64s
    of_ad: csr_matrix
    blocks: dict[int, csr_matrix]
    first: int
    weight: float

    @classmethod
    def of(
        cls, shown: ImpressionCounts, hot: csr_matrix, smoothing: float, weight: float
    ) -> "ContextBaseline":
        """With `a` = `smoothing`, in impressions."""
        pairs = shown.pairs.tocoo()
        expected = smoothing * shown.values[pairs.row] / shown.rows
        told = csr_matrix(
            (np.log1p(pairs.data / expected), (pairs.row, pairs.col)), shape=pairs.shape
        )
        return cls(
            hot,
            np.log((shown.ads + 1) / shown.rows),
            len(shown.columns) * np.log1p(shown.ads / smoothing),
            told.T.tocsr(),
            {at.start: told[:, at] for at in ad_blocks(len(shown.ads))},
            shown.first,
            weight,
        )

    @property
    def count(self) -> int:
        """This rank's ads."""
        return len(self.prior)

    def block(self, queries: slice, ads: slice) -> Tensor:
        """See `BlockScorer`."""
        told = (self.hot[queries] @ self.blocks[ads.start]).toarray()
        told = self.prior[ads] + self.weight * (told - self.own[ads])
        return torch.from_numpy(told)

    def pairs(self, queries: Int64s, ads: Int64s) -> Tensor:
        """See `BlockScorer`."""
        told = self.of_ad[ads].multiply(self.hot[queries]).sum(axis=1)
        told = np.asarray(told).ravel() - self.own[ads]
        return torch.from_numpy(self.prior[ads] + self.weight * told)


def choose(
    shown: ImpressionCounts, users: pl.DataFrame, clicked: Int64s, process: Process
) -> TunedSmoothing:
    """`a` and `weight` that put the clicks of the valid split highest. Collective.

    Args:
        users: (Q,) rows of the valid split that were clicked.
        clicked: (Q,) places of their ads in the catalog.
    """
    if not len(users):
        return TunedSmoothing(SMOOTHINGS[1], WEIGHTS[1], 0, None)
    hot, found = shown.one_hot(users), []
    for smoothing in SMOOTHINGS:
        context = ContextBaseline.of(shown, hot, smoothing, 1.0)
        for weight in WEIGHTS:
            scorer = replace(context, weight=weight)
            ranks = search(scorer, clicked, 1, process).ranks
            gain = float((1 / np.log2(1 + ranks)).mean())
            found.append(TunedSmoothing(smoothing, weight, len(users), gain))
    return max(found, key=lambda chosen: chosen.ndcg or 0.0)
