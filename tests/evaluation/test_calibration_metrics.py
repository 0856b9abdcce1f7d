"""Calibration is measured as scikit-learn measures it, and finds a planted error."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.evaluation.calibration_metrics import (
    binned,
    calibration_error,
    equal_mass,
    recalibration,
)


def drawn(rows: int, seed: int = 0) -> tuple[Float64s, Float64s]:
    """True probabilities, and labels drawn by them."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(-1.5, 1, rows))
    return p, (rng.random(rows) < p).astype(np.float64)


def test_bins_of_equal_mass_are_those_of_scikit_learn() -> None:
    p, label = drawn(4000)
    bins = binned(p, label, equal_mass(p, 20))
    observed, predicted = calibration_curve(label, p, n_bins=20, strategy="quantile")
    assert [b.rows for b in bins] == [200] * 20
    assert [b.observed for b in bins] == pytest.approx(observed.tolist())
    assert [b.predicted for b in bins] == pytest.approx(predicted.tolist())
    expected = np.abs(observed - predicted).mean()
    assert calibration_error(bins) == pytest.approx(expected)
    assert bins[3].error == pytest.approx(
        np.std(label[equal_mass(p, 20) == 3]) / 200**0.5
    )


def test_equal_predictions_are_in_one_bin() -> None:
    """The constant is calibrated, in whatever order the rows stand."""
    label = np.repeat([0.0, 1.0], [300, 100])
    p = np.full(400, 0.25)
    bins = binned(p, label, equal_mass(p, 20))
    assert len(bins) == 1 and bins[0].ratio == 1
    assert calibration_error(bins) == 0


def test_a_ratio_without_a_click_is_not_a_number() -> None:
    (one,) = binned(np.full(3, 0.1), np.zeros(3), np.zeros(3, np.int64))
    assert np.isnan(one.to_json()["ratio"]) and one.rows == 3


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, 0.4), (1.5, -1)])
def test_recalibration_finds_what_was_done_to_the_logits(
    slope: float, intercept: float
) -> None:
    p, label = drawn(200_000)
    wrong = expit((logit(p) - intercept) / slope)
    actual = recalibration(wrong, label)
    assert actual == pytest.approx((slope, intercept), abs=0.05)
    model = LogisticRegression(C=np.inf, tol=1e-8).fit(logit(wrong)[:, None], label)
    expected = (model.coef_[0, 0], model.intercept_[0])
    assert actual == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("p", "label"),
    [
        ([0.1, 0.2, 0.3], [0.0, 0, 0]),
        ([0.2, 0.2, 0.2], [0.0, 1, 0]),
        ([0.1, 0.2, 0.3], [0.0, 0, 1]),
    ],
)
def test_what_has_no_best_line_has_none(p: list[float], label: list[float]) -> None:
    assert np.isnan(recalibration(np.array(p), np.array(label))).all()
