from math import log2

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import ndcg_score, roc_auc_score

from torchrec_adrec.evaluation.bootstrap import (
    auc_difference,
    interval,
    resampled_means,
)
from torchrec_adrec.evaluation.exact_search import SearchResult
from torchrec_adrec.evaluation.ranking_metrics import (
    coverage,
    cuts_of,
    many_relevant,
    one_relevant,
    popularity,
    popularity_deciles,
)
from torchrec_adrec.evaluation.retrieval import retrieval_metrics


def test_one_relevant_ad_by_hand() -> None:
    metrics = one_relevant(np.array([1, 10, 11, 100]), (10, 100))
    assert (
        metrics["recall@10"].tolist() == metrics["hit_rate@10"].tolist() == [1, 1, 0, 0]
    )
    assert metrics["recall@100"].tolist() == [1, 1, 1, 1]
    assert metrics["mrr"].tolist() == [1, 1 / 10, 1 / 11, 1 / 100]
    assert metrics["ndcg@10"].tolist() == [1, 1 / log2(11), 0, 0]


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    """Lists of 40 of 200 ads, and sets of 15 relevant ones; of some no hit."""
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(200)[:40] for _ in range(50)])
    return lists, np.stack([rng.permutation(200)[:15] for _ in range(50)])


def test_ndcg_is_that_of_scikit_learn(sets: tuple[np.ndarray, np.ndarray]) -> None:
    """For sets and, by the rank, for one relevant ad."""
    lists, relevant = sets
    metrics = many_relevant(lists, relevant, (5, 30), 200)
    ranks = np.array([7, 1, 31, 30] * 12 + [5, 6])
    one = one_relevant(ranks, (5, 30))
    for q in range(50):
        score, truth = np.zeros(200), np.zeros(200)
        score[lists[q]] = np.arange(40, 0, -1)
        truth[relevant[q]] = 1
        single = (np.arange(1, 201) == ranks[q]).astype(float)
        for k in (5, 30):
            expected = ndcg_score([truth], [score], k=k)
            assert metrics[f"ndcg@{k}"][q] == pytest.approx(expected)
            expected = ndcg_score([single], [-np.arange(200.0)], k=k)
            assert one[f"ndcg@{k}"][q] == pytest.approx(expected)


def test_figures_of_sets_by_a_loop(sets: tuple[np.ndarray, np.ndarray]) -> None:
    lists, relevant = sets
    lists[0, 30:] = -1  # a list that ended early
    metrics = many_relevant(lists, relevant, (5, 30), 200)
    for q in range(50):
        hits = [ad in set(relevant[q]) for ad in lists[q].tolist()]
        for k in (5, 30):
            assert metrics[f"recall@{k}"][q] == sum(hits[:k]) / min(k, 15)
            assert metrics[f"hit_rate@{k}"][q] == any(hits[:k])
        first = 1 / (1 + hits.index(True)) if any(hits) else 0
        assert metrics["mrr"][q] == first
    perfect = many_relevant(relevant, relevant[:, ::-1], (5, 15, 100), 200)
    assert all(value == pytest.approx(1) for value in perfect.values())


def test_coverage_and_popularity_by_hand() -> None:
    lists = np.array([[0, 1, 2], [0, 3, -1]])
    assert coverage(lists, (1, 3), 8) == {"coverage@1": 1 / 8, "coverage@3": 4 / 8}
    share = np.array([0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0.0])
    metrics = popularity(lists, share, (1, 3))
    assert metrics["popularity@1"].tolist() == [0.4, 0.4]
    assert metrics["popularity@3"] == pytest.approx([0.3, 0.25])


def test_deciles_hold_a_tenth_of_the_impressions_and_ties_together() -> None:
    """At the borders: an ad stands where the mass above it ends."""
    even = popularity_deciles(np.array([1] * 5 + [0] * 2))
    assert even.tolist() == [1] * 5 + [11] * 2
    steps = np.array([25, 15, 10, 10, 9, 11, 8, 6, 4, 2, 0])  # 100 in all
    above = [sum(x for x in steps if x > ad) for ad in steps]
    assert above[:3] == [0, 25, 51]
    assert popularity_deciles(steps).tolist() == [1, 3, 6, 6, 8, 5, 9, 9, 10, 10, 11]
    border = np.array([10, 9, 81 - 72, 72])  # 72 above the 10, 82 above both 9
    assert popularity_deciles(border).tolist() == [8, 9, 9, 1]
    exact = np.arange(10, 0, -1) * 10**12 + 1
    assert popularity_deciles(exact)[0] == 1 and popularity_deciles(exact)[-1] == 10
    rng = np.random.default_rng(0)
    shown = rng.lognormal(4, 1, 5000).astype(np.int64)
    mass = np.bincount(popularity_deciles(shown), shown, 12)[1:11]
    assert mass.sum() == shown.sum()
    assert (np.abs(np.cumsum(mass) / mass.sum() - np.arange(1, 11) / 10) < 0.01).all()


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """400 samples of 80 skewed values: 95% must lie within 3 standard errors."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(400):
        sample = rng.exponential(2.0, size=(80, 1))
        low, high = interval(resampled_means(sample, seed, 400))
        covered += bool(low[0] <= 2.0 <= high[0])
    assert 0.90 < covered / 400 < 0.97  # percentiles of skewed means: a little below


def test_intervals_are_those_of_scipy() -> None:
    values = np.random.default_rng(1).normal(3, 1, size=(500, 2))
    low, high = interval(resampled_means(values, 0, 4000))
    for column in (0, 1):
        theirs = bootstrap(
            (values[:, column],), np.mean, n_resamples=4000, method="percentile"
        ).confidence_interval
        assert low[column] == pytest.approx(theirs.low, abs=0.01)
        assert high[column] == pytest.approx(theirs.high, abs=0.01)


def test_columns_are_drawn_together() -> None:
    """So that a difference of two methods is paired: here it is always 0.5."""
    values = np.random.default_rng(0).normal(size=(60, 1)) + np.array([[0, 0.5]])
    draws = resampled_means(values, 0)
    assert np.diff(draws, axis=1) == pytest.approx(0.5)
    assert (resampled_means(values, 0) == draws).all()


def test_a_paired_difference_of_auc_is_sharper_than_two_intervals() -> None:
    """The second score is the first with noise: a small, certain loss."""
    rng = np.random.default_rng(0)
    label = (rng.random(1500) < 0.3).astype(float)
    one = label + rng.normal(0, 1.5, 1500)
    other = one + rng.normal(0, 0.7, 1500)
    metrics = auc_difference(label, one, other, 0, 200)
    gain = roc_auc_score(label, one) - roc_auc_score(label, other)
    assert metrics["difference"] == pytest.approx(gain)
    assert 0 < metrics["low"] < gain < metrics["high"] < 0.05
    same = auc_difference(label, one, one, 0, 20)
    assert same == {"difference": 0, "low": 0, "high": 0}


def test_groups_stand_apart_and_say_how_many_they_are() -> None:
    """Ads 0 to 9 were never shown; recall is 1 for the seen ads and 0 for the rest."""
    impressions = np.arange(60).clip(min=9) - 9
    clicked = np.array([3, 20, 59, 59])
    ranks = np.array([60, 1, 2, 3])
    lists = np.stack([np.arange(59, 49, -1)] * 4)
    results = {
        name: SearchResult(lists, ranks) for name in ("towers", "popularity", "context")
    }
    metrics = retrieval_metrics(results, clicked, impressions, 0)
    assert cuts_of(60) == (10,) and "recall@100" not in metrics["all"]["towers"]
    towers = {
        name: metrics[name]["towers"] for name in ("all", "seen_ads", "unseen_ads")
    }
    assert [t["clicks"] for t in towers.values()] == [4, 3, 1]
    assert [t["recall@10"] for t in towers.values()] == [0.75, 1, 0]
    assert towers["seen_ads"]["intervals"]["recall@10"] == [1, 1]
    assert towers["all"]["coverage@10"] == 10 / 60
    listed, total = impressions[50:].mean(), impressions.sum()
    assert towers["all"]["popularity@10"] == pytest.approx(listed / total)
    lift = listed / impressions[[20, 59, 59]].mean() - 1
    assert towers["seen_ads"]["popularity_lift@10"] == pytest.approx(lift)
    assert "popularity_lift@10" not in towers["unseen_ads"]
    assert metrics["deciles"]["1"]["context"]["clicks"] == 2
    assert sum(d["towers"]["clicks"] for d in metrics["deciles"].values()) == 3
    assert metrics["all"]["differences"]["towers - popularity"]["recall@10"] == 0
