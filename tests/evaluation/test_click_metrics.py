import numpy as np
import pytest

from torchrec_adrec.evaluation.metrics import click_metrics, value_metrics


def test_figures_of_values_by_hand() -> None:
    metrics = value_metrics(np.array([1.0, 2.0, 6.0]), np.array([2.0, 4.0, 0.0]))
    assert (
        metrics["mae"] == 3 and metrics["mean"] == 2 and metrics["calibration"] == 1.5
    )
    assert metrics["rmse"] == pytest.approx((41 / 3) ** 0.5)
    assert metrics["spearman"] == pytest.approx(-0.5)  # ranks 1 2 3 against 2 3 1


def test_click_metrics_of_the_constant_and_of_the_truth() -> None:
    label = np.array([0.0, 0, 0, 1])
    constant = click_metrics(np.full(4, 0.25), label)
    assert constant["auc"] == 0.5 and constant["calibration"] == 1
    assert round(constant["normalized_entropy"], 9) == 1
    assert click_metrics(np.array([0.1, 0.2, 0.3, 0.9]), label)["auc"] == 1
