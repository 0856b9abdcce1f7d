"""Users and ads as vectors whose inner product is the score: ALS and BPR.

Both are trained by `implicit` (the extra `baselines`).

Shape letters: B users, U users of training, N ads, D the length of a vector.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.classics.interactions import binary


@dataclass(frozen=True)
class Vectors:
    """Vectors of known users and of ads; a new user is the mean of his ads.

    Attributes:
        users: (U, D).
        ads: (N, D).
        of_clicks: (N, D) what each click of a new user adds to his vector, before the
            mean.
    """

    users: Float32s
    ads: Float32s
    of_clicks: Float32s

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        """See `Scorer`."""
        vectors = self.fold_in(history) if is_new else self.users[users]
        return vectors @ self.ads.T

    def fold_in(self, history: csr_matrix) -> Float32s:
        """Return the vectors of new users by their clicks, (B, N) -> (B, D)."""
        count = np.maximum(np.diff(history.indptr), 1)[:, None]
        total = binary(history) @ self.of_clicks
        return np.asarray(total / count, dtype=np.float32)


@dataclass(frozen=True)
class LeastSquares:
    """Vectors of ALS; that of a new user solves the same squares for his clicks.

    Attributes:
        users: (U, D).
        ads: (N, D).
        confidence: of a click, against 1 of an ad that was not clicked.
        l2: the penalty of a vector.
    """

    users: Float32s
    ads: Float32s
    confidence: float
    l2: float

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        """See `Scorer`."""
        vectors = self.solve(history) if is_new else self.users[users]
        return vectors @ self.ads.T

    def solve(self, history: csr_matrix) -> Float32s:
        """Solve for the vectors of users by their clicks, (B, N) -> (B, D).

        (Y'Y + Y'(C - I)Y + l2 I) x = Y'C p, of Hu, Koren and Volinsky, ICDM 2008.
        """
        square = self.ads.T @ self.ads + self.l2 * np.eye(self.ads.shape[1])
        vectors = np.zeros((history.shape[0], self.ads.shape[1]), dtype=np.float32)
        for i in range(history.shape[0]):
            ads = self.ads[history.indices[history.indptr[i] : history.indptr[i + 1]]]
            left = square + (self.confidence - 1) * ads.T @ ads
            vectors[i] = np.linalg.solve(left, self.confidence * ads.sum(axis=0))
        return vectors


def fit_als(
    clicks: csr_matrix,
    factors: int,
    l2: float,
    confidence: float,
    iterations: int,
    seed: int,
) -> LeastSquares:
    """Fit weighted matrix factorisation by alternating least squares.

    Args:
        clicks: (U, N).
        factors: D.
        l2: the penalty.
        confidence: of a click.
        iterations: over all users and ads.
        seed: of the first vectors.

    Raises:
        ConfigError: `implicit` is not installed.
    """
    model = _implicit().als.AlternatingLeastSquares(
        factors=factors,
        regularization=l2,
        alpha=confidence,
        iterations=iterations,
        random_state=seed,
        num_threads=torch.get_num_threads(),
    )
    model.fit(binary(clicks), show_progress=False)
    return LeastSquares(model.user_factors, model.item_factors, confidence, l2)


def fit_bpr(
    clicks: csr_matrix,
    factors: int,
    rate: float,
    l2: float,
    iterations: int,
    seed: int,
) -> Vectors:
    """Fit matrix factorisation by Bayesian personalised ranking.

    Rendle et al., UAI 2009. The method has no vector for a new user; the mean of the
    vectors of his ads, without their bias, stands in for it.

    Args:
        clicks: (U, N).
        factors: D.
        rate: of learning.
        l2: the penalty.
        iterations: as many draws as there are clicks, each.
        seed: of vectors and draws.

    Raises:
        ConfigError: `implicit` is not installed.
    """
    model = _implicit().bpr.BayesianPersonalizedRanking(
        factors=factors,
        learning_rate=rate,
        regularization=l2,
        iterations=iterations,
        random_state=seed,
        num_threads=torch.get_num_threads(),
    )
    model.fit(binary(clicks), show_progress=False)
    # The last element of an ad's vector is its bias, against a 1 in the user's.
    mean = model.item_factors.copy()
    mean[:, -1] = 1
    return Vectors(model.user_factors, model.item_factors, mean)


def _implicit() -> Any:
    try:
        import implicit.cpu.als
        import implicit.cpu.bpr
    except ImportError:
        raise ConfigError(
            "als and bpr are trained by `implicit`, which is not installed; pip install"
            " 'torchrec-adrec[baselines]', or leave these two out"
        ) from None
    return implicit.cpu
