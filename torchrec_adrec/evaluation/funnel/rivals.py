"""Lists that need no model: the most shown ads, and item-item neighbours.

Shape letters: N ads of the catalog, Q requests, U users with training clicks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.schema import AD_ID, NO_USER, USER_KEY, Schema

MOST_CLICKS = 2_000_000  # the latest of training, as of the context baseline


@dataclass(frozen=True)
class ItemItem:
    """Ads that were clicked by the users who clicked what this user has clicked.

    The similarity of two ads is the cosine of their columns in the table of users and
    ads, 1 where the user has clicked the ad in training; the score of an ad is the sum
    of its similarities to the user's ads, without that to itself. Sarwar et al., WWW
    2001; Deshpande and Karypis, TOIS 2004.

    Attributes:
        clicked: (Q, N) what the requests' users have clicked in training.
        columns: (U, N) of length 1 each.
        popularity: (N,) the order of ads for users without clicks, and of equal scores.
    """

    clicked: csr_matrix
    columns: csr_matrix
    popularity: Int64s

    @classmethod
    def count(
        cls, data: Path, user: Int64s, ids: Int64s, impressions: Int64s, schema: Schema
    ) -> Self:
        """Count the clicks of the training rows.

        Args:
            data: a prepared data set that names users.
            user: (Q,) keys of the requests.
            ids: (N,) of the catalog, rising.
            impressions: (N,) in training.
            schema: the first label is the click.
        """
        clicks = (
            pl.scan_parquet(data / "train/*.parquet")
            .filter(pl.col(schema.labels[0].name) == 1, pl.col(USER_KEY) != NO_USER)
            .select(USER_KEY, AD_ID)
            .tail(MOST_CLICKS)
            .unique(maintain_order=True)
            .collect()
        )
        users, row = np.unique(clicks[USER_KEY].to_numpy(), return_inverse=True)
        column = np.searchsorted(ids, clicks[AD_ID].to_numpy())
        shape = len(users), len(ids)
        table = csr_matrix((np.ones(len(row)), (row, column)), shape=shape)
        lengths = np.sqrt(np.asarray(table.sum(axis=0)).ravel())
        columns = table.multiply(1 / np.maximum(lengths, 1)).tocsr()
        return cls(_rows_of(table, users, user), columns, impressions)

    @property
    def known_users(self) -> int:
        """How many of the requests' users have clicks in training."""
        return int((np.diff(self.clicked.indptr) > 0).sum())

    def scores(self, request: int) -> Float64s:
        """Score every ad for the user of a request, (N,)."""
        clicked = self.clicked[request]
        # (U, N)' ((U, N) x): the product of the ads with each other is never formed.
        similar = self.columns.T @ (self.columns @ clicked.T.toarray().ravel())
        # An ad is not similar to itself here: its cosine with itself is 1.
        similar -= clicked.toarray().ravel()
        return np.asarray(similar.round(12))

    def order(self, request: int, eligible: Int64s) -> Int64s:
        """Order the rows that may be shown, best first, equal ones by popularity."""
        keys = (eligible, -self.popularity[eligible], -self.scores(request)[eligible])
        return eligible[np.lexsort(keys)]


def _rows_of(table: csr_matrix, users: Int64s, keys: Int64s) -> csr_matrix:
    """Take the rows of some users, empty for those who have none."""
    places = np.searchsorted(users, keys).clip(max=max(len(users) - 1, 0))
    is_known = (users[places] == keys) if len(users) else np.zeros(len(keys), bool)
    picks = (is_known.astype(np.float64), (np.arange(len(keys)), places))
    return csr_matrix(picks, shape=(len(keys), len(users))) @ table


def most_shown(impressions: Int64s, eligible: Int64s) -> Int64s:
    """Order the rows that may be shown by their training impressions, most first."""
    return eligible[np.lexsort((eligible, -impressions[eligible]))]
