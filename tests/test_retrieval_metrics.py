import numpy as np
import pytest

from torchrec_adrec.evaluation.metrics import click_metrics, value_metrics
from torchrec_adrec.evaluation.retrieval import (
    ranks_by_popularity,
    ranks_by_score,
    recall,
    retrieval_metrics,
)


def test_figures_of_values_by_hand() -> None:
    found = value_metrics(np.array([1.0, 2.0, 6.0]), np.array([2.0, 4.0, 0.0]))
    assert found["mae"] == 3 and found["mean"] == 2 and found["calibration"] == 1.5
    assert found["rmse"] == pytest.approx((41 / 3) ** 0.5)
    assert found["spearman"] == pytest.approx(-0.5)  # ranks 1 2 3 against 2 3 1


def test_ranks_count_ties_against_the_clicked_ad() -> None:
    ads = np.array([[3.0], [2.0], [2.0], [1.0]], dtype=np.float32)
    users = np.ones((3, 1), dtype=np.float32)
    clicked = np.array([0, 1, 3])
    assert ranks_by_score(users, ads, clicked).tolist() == [1, 3, 4]
    impressions = np.array([30, 20, 20, 10])
    assert ranks_by_popularity(impressions, clicked).tolist() == [1, 3, 4]


def test_recall_by_hand() -> None:
    found = recall(np.array([1, 10, 11, 100]), catalog=200)
    assert found["recall@10"] == 0.5 and found["recall@100"] == 1.0
    assert found["mrr"] == (1 + 0.1 + 1 / 11 + 0.01) / 4
    assert "recall@500" not in found


def test_ads_that_training_never_showed_stand_apart() -> None:
    rng = np.random.default_rng(0)
    ads = rng.normal(size=(50, 4)).astype(np.float32)
    impressions = np.arange(50)
    found = retrieval_metrics(ads[:2], ads, np.array([0, 1]), impressions)
    assert found["seen_ads"]["towers"]["clicks"] == 1
    assert found["unseen_ads"]["popularity"]["recall@10"] == 0.0


def test_click_metrics_of_the_constant_and_of_the_truth() -> None:
    label = np.array([0.0, 0, 0, 1])
    constant = click_metrics(np.full(4, 0.25), label)
    assert constant["auc"] == 0.5 and constant["calibration"] == 1
    assert round(constant["normalized_entropy"], 9) == 1
    assert click_metrics(np.array([0.1, 0.2, 0.3, 0.9]), label)["auc"] == 1
