"""Ads that one scorer retrieves, in the order of another."""

import numpy as np
import pytest
from classics_clicks import clustered, table
from test_classics_protocol import Given, random_scores

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.evaluation.classics import rerank
from torchrec_adrec.evaluation.classics.protocol import (
    HeldOut,
    RankingProtocol,
    Scorer,
    judge,
)
from torchrec_adrec.evaluation.classics.rerank import Reranked, run_reranked

FIRST = Given(np.array([[9, 8, 7, 6, 5]], dtype="f4"))
SECOND = Given(np.array([[0, 10, 20, 90, 40]], dtype="f4"))
KNOWN = table([[0]], ads=5)


def order(first: Scorer, second: Scorer, k: int, weight: float) -> list[int]:
    """The ads of a user who has clicked ad 0, the best first."""
    pair = Reranked(first, second, k, weight)
    scores = pair.scores(KNOWN, np.array([0]), False)
    assert len(set(scores[0].tolist())) == 5
    return list(np.argsort(-scores[0])[:-1])


def test_the_best_of_the_first_stand_in_the_order_of_the_second() -> None:
    """Fails when a known ad takes one of the K places, or one from below gets in."""
    assert order(FIRST, SECOND, k=2, weight=1) == [2, 1, 3, 4]
    assert order(FIRST, SECOND, k=3, weight=1) == [3, 2, 1, 4]
    assert order(FIRST, SECOND, k=99, weight=1) == [3, 4, 2, 1]
    assert order(FIRST, SECOND, k=3, weight=0) == [1, 2, 3, 4]
    # Standardised over ads 1, 2 and 3 the first has 1.2, 0, -1.2, the second -0.8,
    # -0.6, 1.4, whatever its scale.
    assert order(FIRST, SECOND, k=3, weight=0.4) == [1, 3, 2, 4]
    assert order(FIRST, SECOND, k=3, weight=0.6) == [3, 1, 2, 4]
    larger = Given(SECOND.table * 1000 - 5)
    assert order(FIRST, larger, k=3, weight=0.4) == [1, 3, 2, 4]


def test_a_weight_of_nothing_changes_no_figure() -> None:
    data = clustered(ads=90)
    scorer, other = random_scores(60, 90), random_scores(60, 90, seed=1)
    for protocol in (
        RankingProtocol(),
        RankingProtocol(candidates="sampled", negatives=30),
    ):
        alone = judge(scorer, data, protocol)
        again = judge(Reranked(scorer, other, 20, 0), data, protocol)
        whole = judge(Reranked(scorer, other, 90, 1), data, protocol)
        for name, values in alone.metrics.items():
            assert np.array_equal(values, again.metrics[name]), name
        second = judge(other, data, protocol)
        assert whole.means == pytest.approx(second.means)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_a_second_that_knows_nothing_has_no_hits(value: float) -> None:
    """Equal scores keep counting against the held-out ad, and so does no number."""
    data = clustered(ads=90)
    constant = Given(np.full((60, 90), value, dtype="f4"))
    pair = Reranked(random_scores(60, 90), constant, 20, 1.0)
    assert judge(pair, data, RankingProtocol(cuts=(1, 5))).means["hr@5"] == 0


def test_the_weight_is_chosen_on_validation_clicks_alone() -> None:
    """Fails when the test clicks choose, which the first scorer knows."""
    data = clustered()
    scores: dict[str, Float32s] = {
        split: (data.splits[split].toarray() > 0).astype("f4") for split in data.splits
    }
    noise = random_scores(60, 24)
    asked: list[HeldOut] = []

    def first(split: HeldOut) -> Given:
        asked.append(split)
        return Given(scores["test"]) if split == "test" else noise

    def second(split: HeldOut) -> Given:
        return Given(scores["valid"]) if split == "valid" else noise

    figures = run_reranked(first, second, data, k=24)
    # From here on the second one's ads come first; the test clicks would choose 0.
    assert figures["settings"] == {"k": 24, "weight": 0.5}
    assert [t["settings"]["weight"] for t in figures["tried"]] == [*rerank.WEIGHTS]
    assert figures["tried"][-1]["ndcg@10"] == 1 > figures["full"]["metrics"]["ndcg@10"]
    assert asked == ["valid", "test"]
