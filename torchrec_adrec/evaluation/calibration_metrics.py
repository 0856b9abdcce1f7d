"""Whether predictions mean what they say: 100 rows at 0.03 should hold 3 clicks.

Shape letter: B rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from torchrec_adrec.arrays import Float64s, Int64s

BINS = 20  # of the calibration error and of the picture
DECILES = 10
# A probability of exactly 0 or 1 has no logit; scikit-learn clips by as much.
CLIP = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Bin:
    """Rows that are judged together.

    Attributes:
        rows: how many.
        predicted: mean prediction.
        observed: mean label.
        error: standard error of that mean.
    """

    rows: int
    predicted: float
    observed: float
    error: float

    @property
    def ratio(self) -> float:
        """Predicted over observed: 1 is calibrated; NaN where nothing was observed."""
        return self.predicted / self.observed if self.observed else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return its numbers by name, the ratio among them."""
        return asdict(self) | {"ratio": self.ratio}


def equal_mass(predicted: Float64s, bins: int) -> Int64s:
    """Find the bin of each row, (B,): bins of equal size, from the lowest prediction.

    Equal predictions are in one bin. Cut apart, they would be split by the order of
    the rows, and a constant, which is calibrated, would seem not to be.
    """
    below = np.searchsorted(np.sort(predicted), predicted, side="left")
    return np.asarray(bins * below // max(len(predicted), 1), dtype=np.int64)


def binned(predicted: Float64s, label: Float64s, bin_of: Int64s) -> list[Bin]:
    """Compute the means of each bin that has rows, in the order of bins.

    Args:
        predicted: (B,).
        label: (B,) observed, of any kind.
        bin_of: (B,) from 0.
    """
    count = np.bincount(bin_of)
    present = np.flatnonzero(count)
    rows = count[present]
    predicted_mean, mean, square = (
        np.bincount(bin_of, weights=values)[present] / rows
        for values in (predicted, label, label**2)
    )
    error = np.sqrt(np.maximum(square - mean**2, 0) / rows)
    columns = (rows.tolist(), predicted_mean.tolist(), mean.tolist(), error.tolist())
    return [Bin(*numbers) for numbers in zip(*columns, strict=True)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Compute the mean distance of predicted and observed over all rows.

    Naeini et al., AAAI 2015 (ECE); with bins of equal mass, Nguyen and O'Connor, EMNLP
    2015.
    """
    rows = sum(b.rows for b in bins)
    return sum(b.rows * abs(b.predicted - b.observed) for b in bins) / rows


def logits_of(probability: Float64s) -> Float64s:
    """Compute the log odds, finite for probabilities of 0 and 1 too."""
    return np.asarray(logit(np.clip(probability, CLIP, 1 - CLIP)), dtype=np.float64)


def recalibration(probability: Float64s, label: Float64s) -> tuple[float, float]:
    """Fit label ~ sigmoid(slope * logit + intercept) (Cox, Biometrika 1958).

    Calibrated predictions have slope 1 and intercept 0. A slope below 1 says that they
    are too extreme, as those of a model that has learnt its training rows by heart.

    Args:
        probability: (B,) predicted.
        label: (B,) 0 or 1.

    Returns:
        Slope and intercept; NaN where no best ones exist: one class alone, one
        prediction for all rows, or two classes that do not overlap.
    """
    return fit_line(logits_of(probability), label)


def fit_line(
    logits: Float64s, label: Float64s, with_intercept: bool = True
) -> tuple[float, float]:
    """Fit label ~ sigmoid(slope * logit + intercept) by maximum likelihood.

    Args:
        logits: (B,).
        label: (B,) 0 or 1.
        with_intercept: without one it stays 0.

    Returns:
        Slope and intercept; NaN where no best ones exist.
    """
    clicked = label == 1
    nan = (float("nan"), float("nan"))
    if clicked.all() or not clicked.any() or not np.ptp(logits):
        return nan
    ones, zeros = logits[clicked], logits[~clicked]
    if ones.min() >= zeros.max() or zeros.min() >= ones.max():
        return nan
    # C = infinity: no penalty, which would pull the slope towards 0.
    model = LogisticRegression(
        C=np.inf, solver="newton-cholesky", tol=1e-10, fit_intercept=with_intercept
    )
    model.fit(logits[:, None], clicked)
    return float(model.coef_[0, 0]), float(np.ravel(model.intercept_)[0])
