"""Metrics of each user's list are those of scikit-learn, ties and weights included."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.evaluation.user_lists import UserLists, user_lists
from torchrec_adrec.schema import NO_USER

Rows = tuple[Float64s, Float64s, Int64s]


@pytest.fixture
def rows() -> Rows:
    """Predictions with many ties, of users with 1 to some 50 rows in no order."""
    rng = np.random.default_rng(0)
    user = (90 * rng.random(500) ** 2).astype(np.int64) - 1  # among them NO_USER
    predicted = np.round(rng.random(500), 1)
    label = (rng.random(500) < 0.2 + 0.4 * predicted).astype(np.float64)
    return predicted, label, user


def of_users(lists: UserLists, rows: Rows) -> list[tuple[int, Float64s, Float64s]]:
    predicted, label, user = rows
    return [
        (i, label[user == u], predicted[user == u]) for i, u in enumerate(lists.users)
    ]


def test_each_user_has_the_figures_of_scikit_learn(rows: Rows) -> None:
    lists = user_lists(*rows, (3, 10, 500))
    assert len(lists.users) > 20
    for i, label, predicted in of_users(lists, rows):
        actual: dict[str, Any] = {n: values[i] for n, values in lists.metrics.items()}
        assert actual["auc"] == pytest.approx(roc_auc_score(label, predicted))
        for k in (3, 10, 500):
            expected = ndcg_score([label], [predicted], k=k)
            assert actual[f"ndcg@{k}"] == pytest.approx(expected)
        expected = average_precision_score(label, predicted)
        assert actual["map@500"] == pytest.approx(expected)
        # By its definition: the last of the places that the best click may stand at.
        place = (predicted >= predicted[label == 1].max()).sum()
        assert actual["mrr"] == pytest.approx(1 / place)


def test_map_at_k_by_hand() -> None:
    label = np.array([1.0, 0, 1, 1, 0])
    lists = user_lists(-np.arange(5.0), label, np.zeros(5, np.int64), (1, 3))
    assert lists.metrics["map@3"] == pytest.approx((1 + 2 / 3) / 3)
    assert lists.metrics["map@1"] == 1 and lists.metrics["mrr"] == 1


def test_the_grouped_auc_is_the_mean_by_impressions(rows: Rows) -> None:
    lists = user_lists(*rows)
    users = of_users(lists, rows)
    sizes = [len(label) for _, label, _ in users]
    aucs = [roc_auc_score(label, predicted) for _, label, predicted in users]
    assert lists.grouped_auc == pytest.approx(np.average(aucs, weights=sizes))
    assert lists.grouped_auc != pytest.approx(np.mean(aucs), abs=1e-3)
    assert lists.rows.tolist() == sizes


def test_users_of_one_class_are_left_out_and_counted(rows: Rows) -> None:
    predicted, label, user = rows
    lists = user_lists(predicted, label, user)
    is_mixed = {u: 0 < label[user == u].mean() < 1 for u in set(user.tolist())}
    mixed = sorted(u for u in is_mixed if is_mixed[u] and u != NO_USER)
    others = [u for u in is_mixed if not is_mixed[u]]
    assert lists.users.tolist() == mixed and others
    assert lists.dropped_users == len(others)
    assert lists.dropped_rows == np.isin(user, others).sum()
    assert lists.rows_without_user == (user == NO_USER).sum() > 0


def test_equal_scores_for_all_are_worth_nothing() -> None:
    label = np.array([1.0, 0, 0, 0])
    lists = user_lists(np.full(4, 0.5), label, np.zeros(4, np.int64), (2, 4))
    assert lists.metrics["auc"] == 0.5
    assert lists.metrics["mrr"] == lists.metrics["map@4"] == 1 / 4
    assert lists.metrics["map@2"] == 0


def test_without_a_user_of_both_classes_there_is_no_figure() -> None:
    lists = user_lists(np.ones(3), np.ones(3), np.arange(3))
    assert np.isnan(lists.grouped_auc) and lists.dropped_users == 3
