"""Bootstrap intervals: how far a mean would move with other queries of its kind."""

import numpy as np
from sklearn.metrics import roc_auc_score

from torchrec_adrec.arrays import Float64s

RESAMPLES, LEVEL = 1000, 0.95
DRAWN_AT_ONCE = 50  # resamples
MOST_COUNTS = 1_000_000  # held at once: 8 MB


def auc_difference(
    label: Float64s,
    one: Float64s,
    other: Float64s,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, float]:
    """Compute the AUC of `one` less that of `other`, and its 95% interval.

    Rows are drawn together for both, so what makes a row hard for both cancels out.

    Args:
        label: (N,) 0 or 1, of both classes.
        one: (N,) scores.
        other: (N,) scores of the same rows.
        seed: of the draws.
        resamples: how many draws.

    Returns:
        `difference`, `low`, `high`.
    """
    rng, rows = np.random.default_rng(seed), len(label)
    draws = [rng.integers(rows, size=rows) for _ in range(resamples)]
    gains = [_auc_gain(label[d], one[d], other[d]) for d in draws]
    low, high = interval(np.array(gains))
    difference = _auc_gain(label, one, other)
    return {"difference": difference, "low": float(low), "high": float(high)}


def _auc_gain(label: Float64s, one: Float64s, other: Float64s) -> float:
    return float(roc_auc_score(label, one) - roc_auc_score(label, other))


def resampled_means(
    values: Float64s, seed: int, resamples: int = RESAMPLES
) -> Float64s:
    """Compute the means of draws of as many rows, with replacement.

    Columns are drawn together, so differences of columns are paired. Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993.

    Args:
        values: (Q, F), Q at least 1.
        seed: of the draws.
        resamples: how many draws.

    Returns:
        (resamples, F).
    """
    # A product with counts is much faster than gathering the drawn rows of each draw.
    rows, rng = len(values), np.random.default_rng(seed)
    at_once = min(DRAWN_AT_ONCE, max(MOST_COUNTS // rows, 1))
    means = []
    for first in range(0, resamples, at_once):
        size = min(at_once, resamples - first)
        drawn = rng.integers(rows, size=(size, rows))
        counts = np.stack([np.bincount(d, minlength=rows) for d in drawn])
        means.append(counts.astype(np.float64) @ values / rows)
    return np.concatenate(means)


def interval(draws: Float64s, level: float = LEVEL) -> Float64s:
    """Find the percentiles between which `level` of the draws lie, (2, ...)."""
    tail = 100 * (1 - level) / 2
    return np.asarray(np.percentile(draws, [tail, 100 - tail], axis=0))
