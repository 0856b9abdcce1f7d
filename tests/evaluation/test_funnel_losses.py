"""The losses add up, each is blamed on the right stage, and lists are judged right."""

from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.evaluation.funnel.figures import Truth
from torchrec_adrec.evaluation.funnel.losses import (
    LEVELS,
    LOSSES,
    TOTAL,
    Reached,
    exact_first,
    levels,
    losses,
)
from torchrec_adrec.evaluation.funnel.rivals import ItemItem, most_shown

ADS, TOP = 40, 3
ALL = np.arange(ADS)


def draw(seed: int) -> tuple[Float64s, Float64s]:
    """Worth and scores of ads that have something to do with one another."""
    rng = np.random.default_rng(seed)
    worth = rng.random(ADS)
    return worth, worth + 0.4 * rng.normal(size=ADS)


def reached(scores: Float64s, ranked: Int64s, depth: int) -> Reached:
    exact, deep = exact_first(scores.astype(np.float32), ALL, ranked, depth)
    return Reached(ALL, deep, exact, ranked)


@pytest.mark.parametrize("seed", range(5))
def test_the_losses_add_up_and_none_but_the_index_gains(seed: int) -> None:
    worth, scores = draw(seed)
    rng = np.random.default_rng(seed)
    ranked = rng.permutation(np.argsort(-scores)[:12])[:8]  # an index that errs
    value = levels(worth, reached(scores, ranked, 16), TOP)
    lost = losses({name: np.array([x]) for name, x in value.items()})
    sums = sum(lost[name] for name in LOSSES)
    assert sums == pytest.approx(value["oracle"] - value["funnel"], abs=1e-12)
    assert lost[TOTAL] == pytest.approx(sums, abs=1e-12)
    for name in ("tower", "truncation", "ranker"):
        assert lost[name] >= 0
    assert value["oracle"] == pytest.approx(np.sort(worth)[-TOP:].sum())
    assert value["funnel"] == pytest.approx(worth[ranked[:TOP]].sum())


def test_each_stage_alone_is_blamed() -> None:
    """An ad of great worth is lost at one stage after the other."""
    scores = -ALL.astype(np.float64)  # the towers' order is 0, 1, 2, ...
    returned = np.arange(8)
    for stage, ad, ranked in (
        ("tower", 20, returned),
        ("truncation", 10, returned),
        ("index", 7, np.array([0, 1, 2, 3, 4, 5, 6, 8])),
        ("ranker", 7, returned),
    ):
        worth = np.zeros(ADS)
        worth[ad] = 1
        value = levels(worth, reached(scores, ranked, 16), TOP)
        lost = losses({name: np.array([x]) for name, x in value.items()})
        assert {n: float(x[0]) for n, x in lost.items()} == {
            name: float(name in (stage, TOTAL)) for name in (*LOSSES, TOTAL)
        }


def test_the_worked_example_of_the_documentation() -> None:
    """docs/evaluation.md: ads a to e, K = 2, D = 4, the index returns a and c."""
    worth, scores = np.array([1.0, 4, 2, 7, 9]), np.array([5, 4, 3, 2, 1], np.float32)
    ranked, ads = np.array([0, 2]), np.arange(5)
    exact, deep = exact_first(scores, ads, ranked, 4)
    value = levels(worth, Reached(ads, deep, exact, ranked), 1)
    lost = losses({name: np.array([x]) for name, x in value.items()})
    figures = {name: float(x[0]) for name, x in lost.items()}
    assert figures == {"tower": 2, "truncation": 3, "index": 2, "ranker": 1, "total": 8}


def test_a_loss_that_counts_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {name: np.array([5.0 - i]) for i, name in enumerate(LEVELS)}
    assert losses(value)[TOTAL] == 4
    monkeypatch.setitem(LOSSES, "index", ("deep", "index"))  # truncation is in it too
    with pytest.raises(AssertionError, match="twice"):
        losses(value)


def test_any_of_equal_ads_will_do() -> None:
    """Which of them an index returns is no loss; an ad that is worse is one."""
    scores = np.array([5, 4, 3, 3, 3, 3 + 5e-7, 2, 1], dtype=np.float32)
    rows = np.arange(8)
    for tied in combinations([2, 3, 4, 5], 2):
        returned = np.array([1, *tied, 0])
        exact, deep = exact_first(scores, rows, returned, 6)
        assert set(exact) == set(returned)
        assert set(deep) == {0, 1, 2, 3, 4, 5}
        assert deep[:4].tolist() == exact.tolist()
    exact, _ = exact_first(scores, rows, np.array([0, 1, 2, 6]), 4)
    assert 6 not in exact and {0, 1, 2} < set(exact)
    exact, deep = exact_first(scores, rows, rows[::-1], 8)
    assert set(exact) == set(deep) == set(rows)


def test_only_ads_that_may_be_shown_are_searched() -> None:
    scores = np.arange(10, dtype=np.float32)
    exact, deep = exact_first(scores, np.array([1, 3, 5, 7]), np.array([7, 3]), 3)
    assert (exact.tolist(), deep.tolist()) == ([7, 5], [7, 5, 3])


def truth_of(worth: Float64s) -> Truth:
    eligible = np.array([0, 1, 3, 4, 5])
    relevant = np.zeros(len(worth), dtype=bool)
    relevant[[3, 5]] = True
    return Truth(worth, relevant, eligible, TOP)


def test_figures_of_a_list_by_hand() -> None:
    truth = truth_of(np.array([1.0, 0.0, 9.0, 4.0, 2.0, 3.0]))
    figures = truth.figures(np.array([3, 4, 1, 5]))
    assert figures["value"] == 6
    assert figures["recall"] == 0.5
    best = 4 + 3 / np.log2(3) + 2 / 2
    assert figures["ndcg"] == pytest.approx((4 + 2 / np.log2(3)) / best)
    assert truth.figures(np.array([3, 5, 4]))["ndcg"] == pytest.approx(1)
    assert truth.recall(np.array([5, 3, 0, 1])) == 1


def test_random_is_the_mean_of_all_lists() -> None:
    truth = truth_of(np.array([1.0, 0.5, 9.0, 4.0, 2.0, 3.0]))
    lists = [truth.figures(np.array(p)) for p in permutations(truth.eligible, TOP)]
    for name, mean in truth.random_figures().items():
        assert mean == pytest.approx(np.mean([figures[name] for figures in lists]))


def test_item_item_is_the_cosine_of_clicks() -> None:
    """Compared with the dense product, without the similarity to itself."""
    clicks = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]])
    lengths = np.sqrt(clicks.sum(axis=0))
    cosine = clicks.T @ clicks / np.outer(lengths, lengths)
    np.fill_diagonal(cosine, 0)
    table = csr_matrix(clicks.astype(np.float64))
    columns = table.multiply(1 / lengths).tocsr()
    neighbours = ItemItem(table[[0, 3]], columns, np.array([5, 9, 7, 8]))
    for request, user in enumerate((0, 3)):
        expected = clicks[user] @ cosine
        np.testing.assert_allclose(neighbours.scores(request), expected, atol=1e-9)
    # Equal scores, here 0 of ad 0 and of ad 3, stand by impressions.
    assert neighbours.order(1, np.arange(4)).tolist() == [1, 2, 3, 0]


def test_most_shown_ads_stand_first() -> None:
    impressions = np.array([3, 8, 8, 1, 9])
    assert most_shown(impressions, np.array([0, 1, 2, 3])).tolist() == [1, 2, 0, 3]
