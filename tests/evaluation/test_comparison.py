"""Differences of two models are paired: what is hard for both cancels out."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.evaluation.comparison import (
    Difference,
    mean_terms,
    paired,
    prediction_terms,
)
from torchrec_adrec.evaluation.metrics import click_metrics

ROWS, USERS = 600, 60


def draw(seed: int) -> tuple[Int64s, Float64s, Float64s, Float64s]:
    """Users, clicks, and predictions of two models of which the second is better."""
    rng = np.random.default_rng(seed)
    user = rng.integers(USERS, size=ROWS)
    logit = rng.normal(size=USERS)[user] + rng.normal(size=ROWS)
    label = (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    noise = 0.4 * rng.normal(size=ROWS)
    one, other = logit + noise + 0.4 * rng.normal(size=ROWS), logit + noise
    return user, label, 1 / (1 + np.exp(-one)), 1 / (1 + np.exp(-other))


def test_figures_are_those_of_each_model() -> None:
    user, label, one, other = draw(0)
    terms = [prediction_terms(p, label, user) for p in (one, other)]
    names = ("auc", "log_loss", "ndcg@10")
    differences = paired(terms[0], terms[1], user, 0, names)
    auc, loss, ndcg = differences
    expected = [roc_auc_score(label, p) for p in (one, other)]
    assert [auc.a, auc.b] == pytest.approx(expected)
    assert loss.a == pytest.approx(click_metrics(one, label)["log_loss"])
    for d in differences:
        assert d.low <= d.b - d.a <= d.high
    assert (auc.verdict, loss.verdict) == ("B", "B")
    assert ndcg.metric == "ndcg@10" and 0 < ndcg.a < 1


def test_equal_models_differ_by_nothing() -> None:
    user, label, one, _ = draw(1)
    terms = [prediction_terms(one, label, user) for _ in range(2)]
    for d in paired(terms[0], terms[1], user, 0, ("auc", "log_loss")):
        assert d.low == d.high == 0 and d.verdict == "open"


def test_intervals_of_pairs_are_those_of_the_differences() -> None:
    """A mean of differences has the interval of a paired bootstrap, and no wider."""
    rng = np.random.default_rng(0)
    hard = 5 * rng.normal(size=400)  # for both
    a, b = hard + rng.normal(size=400), hard + 0.3 + rng.normal(size=400)
    rows = np.arange(400)
    (d,) = paired(mean_terms({"x": a}), mean_terms({"x": b}), rows, 0, ("x",))
    error = (b - a).std() / np.sqrt(400)
    assert d.high - d.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert d.b - d.a == pytest.approx((b - a).mean()) and d.verdict == "B"


def test_rows_of_a_user_are_drawn_together() -> None:
    """Copies of each row within its user bring no certainty."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=100)
    copies = np.repeat(values, 9)
    zero = mean_terms({"x": np.zeros(900)})
    user = np.repeat(np.arange(100), 9)
    (d,) = paired(zero, mean_terms({"x": copies}), user, 0, ("x",))
    error = values.std() / np.sqrt(100)
    assert d.high - d.low == pytest.approx(2 * 1.96 * error, rel=0.15)


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [
        ("auc", 0.1, 0.2, "B"),
        ("auc", -0.2, -0.1, "A"),
        ("click, log_loss", 0.1, 0.2, "A"),
        ("log_loss", -0.2, -0.1, "B"),
        ("auc", -0.1, 0.2, "open"),
        ("auc", float("nan"), float("nan"), "open"),
    ],
)
def test_the_verdict_knows_what_is_better(
    metric: str, low: float, high: float, verdict: str
) -> None:
    assert Difference(metric, 0.5, 0.6, low, high).verdict == verdict
