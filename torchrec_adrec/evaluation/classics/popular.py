"""One list for everyone: the ads that were clicked most.

Shape letters: B users, U users of training, N ads.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.classics.protocol import Scorer


@dataclass(frozen=True)
class Popularity:
    """The number of clicks of each ad, for every user alike.

    Attributes:
        counts: (N,).
    """

    counts: Float32s

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        """See `Scorer`."""
        return np.tile(self.counts, (history.shape[0], 1))


@dataclass(frozen=True)
class PopularWhereNothingIsKnown:
    """A scorer, but for users without a known click, to whom popularity answers.

    Without it such users would have equal scores for all ads, which nobody serves.

    Attributes:
        scorer: answers all others.
        popularity: of the same clicks.
    """

    scorer: Scorer
    popularity: Popularity

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        """See `Scorer`."""
        scores = self.scorer.scores(history, users, is_new)
        is_empty = np.diff(history.indptr) == 0
        scores[is_empty] = self.popularity.counts
        return scores


def fit_popularity(clicks: csr_matrix) -> Popularity:
    """Count the clicks of each ad, (U, N) -> (N,)."""
    return Popularity(
        np.bincount(clicks.indices, minlength=clicks.shape[1]).astype("f4")
    )


def fit_recent_popularity(clicks: csr_matrix, share: float) -> Popularity:
    """Count the latest clicks of each ad.

    Args:
        clicks: (U, N), values rise with the time of the click.
        share: of all clicks that is counted.

    Raises:
        ConfigError: the share is not one.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share: expected above 0 and at most 1, found {share}")
    first = np.quantile(clicks.data, 1 - share)
    recent = clicks.indices[clicks.data >= first]
    return Popularity(np.bincount(recent, minlength=clicks.shape[1]).astype("f4"))
