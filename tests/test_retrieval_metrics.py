import numpy as np

from torchrec_adrec.evaluation.metrics import click_metrics
from torchrec_adrec.evaluation.retrieval import (
    ranks_by_popularity,
    ranks_by_score,
    recall,
    retrieval_metrics,
)


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
