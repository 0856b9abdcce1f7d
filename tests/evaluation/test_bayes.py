import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss

from torchrec_adrec.evaluation.known_world import bayes, expected_metrics


def test_the_expected_auc_is_that_of_all_pairs() -> None:
    p = np.array([0.1, 0.2, 0.2, 0.7, 0.9, 0.05])
    won = total = 0.0
    for a in p:
        for b in p:  # a was clicked, b was not
            total += a * (1 - b)
            won += a * (1 - b) * ((a > b) + (a == b) / 2)
    assert expected_metrics(p)["auc"] == pytest.approx(won / total, abs=1e-12)


def test_expected_figures_are_the_mean_of_drawn_ones() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 3, 200_000)
    click = rng.random(len(p)) < p
    truth = pl.DataFrame({"p_click": p, "engagement": np.where(click, 1.0, np.nan)})
    metrics = bayes(truth.with_columns(pl.col("engagement").fill_nan(None)))
    expected, drawn = metrics["expected"], metrics["drawn"]
    assert drawn["auc"] == pytest.approx(expected["auc"], abs=0.004)
    assert drawn["log_loss"] == pytest.approx(expected["log_loss"], abs=0.004)
    assert drawn["calibration"] == pytest.approx(1, abs=0.02)
    assert expected["click_rate"] == pytest.approx(p.mean())
    constant = log_loss(click, np.full(len(p), click.mean()))
    assert expected["base_entropy"] == pytest.approx(constant, abs=0.004)


def test_no_other_prediction_is_better() -> None:
    """Fails when the entropy is that of anything but p."""
    p = np.random.default_rng(1).uniform(0.01, 0.99, 500)
    best = expected_metrics(p)["log_loss"]
    for q in (p + 0.005, np.sqrt(p), np.full(500, p.mean())):
        loss = -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
        assert loss > best
    assert best == pytest.approx(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean())
