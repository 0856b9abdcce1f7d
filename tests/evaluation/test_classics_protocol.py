"""The evaluator of full and sampled ranking: metrics, ties, candidates, histories."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from classics_clicks import clustered, interactions, table
from scipy.sparse import csr_matrix
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.classics.interactions import binary, latest
from torchrec_adrec.evaluation.classics.popular import (
    Popularity,
    PopularWhereNothingIsKnown,
)
from torchrec_adrec.evaluation.classics.protocol import (
    NewUsersError,
    RankingProtocol,
    ResultTable,
    cold_start,
    draw,
    judge,
)


@dataclass(frozen=True)
class Given:
    """Scores that are given, by the number of the user."""

    table: Float32s

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        if is_new:
            raise NewUsersError("given by number")
        return self.table[users].copy()


def random_scores(users: int, ads: int, seed: int = 0) -> Given:
    rng = np.random.default_rng(seed)
    return Given(rng.permuted(np.tile(np.arange(ads), (users, 1)), axis=1).astype("f4"))


def test_two_users_by_hand() -> None:
    splits = {"train": [[0], [5]], "valid": [[1], []], "test": [[2, 3], [0]]}
    data = interactions(splits, ads=6)
    # User 0: 0 and 1 are known; 4, 3, 5, 2 in this order: places 2 and 4. User 1: 5 is
    # known; 1, 0, ...: place 2.
    scores = np.array([[9, 8, 1, 3, 4, 2], [5, 6, 1, 2, 3, 9]], dtype=np.float32)
    judged = judge(Given(scores), data, RankingProtocol(cuts=(1, 2, 3, 4)))
    log = np.log2
    two: dict[str, tuple[list[float], list[float]]] = {
        "hr": ([0, 1, 1, 1], [0, 1, 1, 1]),
        "recall": ([0, 0.5, 0.5, 1], [0, 1, 1, 1]),
        "mrr": ([0, 0.5, 0.5, 0.5], [0, 0.5, 0.5, 0.5]),
        "ndcg": (
            [
                0,
                (1 / log(3)) / (1 + 1 / log(3)),
                (1 / log(3)) / (1 + 1 / log(3)),
                (1 / log(3) + 1 / log(5)) / (1 + 1 / log(3)),
            ],
            [0, 1 / log(3), 1 / log(3), 1 / log(3)],
        ),
    }
    for name, of_users in two.items():
        for i, k in enumerate((1, 2, 3, 4)):
            expected = [of_users[0][i], of_users[1][i]]
            assert judged.metrics[f"{name}@{k}"] == pytest.approx(expected), (name, k)


@pytest.mark.parametrize("k", [5, 10, 20])
def test_metrics_are_those_of_torchmetrics(k: int) -> None:
    rows = np.random.default_rng(1).permuted(np.tile(np.arange(40), (60, 1)), axis=1)
    cuts = {"train": slice(4), "valid": slice(4, 5), "test": slice(5, 13)}
    data = interactions({n: rows[:, c].tolist() for n, c in cuts.items()}, ads=40)
    scorer = random_scores(60, 40)
    judged = judge(scorer, data, RankingProtocol(cuts=(5, 10, 20)))
    functions = {
        "hr": retrieval_hit_rate,
        "recall": retrieval_recall,
        "ndcg": retrieval_normalized_dcg,
    }
    known, held = data.known("test").toarray() > 0, data.splits["test"].toarray() > 0
    for name, function in functions.items():
        expected = [
            function(
                torch.from_numpy(scorer.table[user][~known[user]]),
                torch.from_numpy(held[user][~known[user]]),
                top_k=k,
            ).item()
            for user in range(60)
        ]
        assert judged.metrics[f"{name}@{k}"] == pytest.approx(expected, abs=1e-6)
    whole = [
        retrieval_reciprocal_rank(
            torch.from_numpy(scorer.table[user][~known[user]]),
            torch.from_numpy(held[user][~known[user]]),
        ).item()
        for user in range(60)
    ]
    below = [value if value > 1 / (k + 0.5) else 0 for value in whole]
    assert judged.metrics[f"mrr@{k}"] == pytest.approx(below, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("candidates", ["all", "sampled"])
def test_a_scorer_that_knows_nothing_has_no_hits(value: float, candidates: str) -> None:
    """Fails when equal scores count for the held-out ad."""
    data = clustered(ads=90)
    protocol = RankingProtocol(candidates=candidates, negatives=50)  # type: ignore[arg-type]
    constant = Given(np.full((60, 90), value, dtype=np.float32))
    assert all(mean == 0 for mean in judge(constant, data, protocol).means.values())


def test_equal_scores_count_for_the_others_alone() -> None:
    """The held-out ad shares its score with one other: its place is the second."""
    data = interactions({"train": [[0]], "valid": [[1]], "test": [[2]]}, ads=30)
    scores = np.zeros((1, 30), dtype=np.float32)
    scores[0, [2, 7]] = 1
    means = judge(Given(scores), data, RankingProtocol()).means
    assert means["mrr@5"] == 0.5 and means["hr@5"] == 1
    scores[0, [0, 1]] = 9  # what the user has clicked is no candidate
    assert judge(Given(scores), data, RankingProtocol()).means["mrr@5"] == 0.5
    scores[0, 9] = np.nan  # and what is no number counts as better
    assert judge(Given(scores), data, RankingProtocol()).means["mrr@5"] == 1 / 3
    scores[0, 2] = np.nan  # but as worse than all where it is the held-out ad's own
    assert judge(Given(scores), data, RankingProtocol()).means["hr@20"] == 0


def test_drawn_ads_are_none_that_the_user_clicked_in_any_split() -> None:
    data = clustered(ads=30)
    everything = sum(data.splits[n].toarray() for n in ("train", "valid", "test")) > 0
    protocol = RankingProtocol(candidates="sampled", negatives=20)
    for user in range(60):
        clicked = np.flatnonzero(everything[user])
        drawn = draw(clicked, 30, 2, protocol, user)
        assert not np.isin(drawn, clicked).any()
        assert all(len(set(row)) == 20 for row in drawn.tolist())
        assert np.array_equal(drawn, draw(clicked, 30, 2, protocol, user))
    with pytest.raises(DataError, match="all but 20 of 30 ads, expected 21"):
        draw(clicked, 30, 1, replace(protocol, negatives=21), 0)


def test_sampled_ranking_by_chance_and_by_an_oracle() -> None:
    data = clustered(users=300, ads=150)
    protocol = RankingProtocol(candidates="sampled", negatives=99)
    by_chance = judge(random_scores(300, 150), data, protocol).means["hr@10"]
    # 600 questions of 100 ads each: one in ten, within four standard errors.
    assert abs(by_chance - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 600)
    oracle = Given((data.splits["test"].toarray() > 0).astype(np.float32))
    assert judge(oracle, data, protocol).means["ndcg@5"] == 1
    # A user's two test ads are both of them right, but full ranking asks for both.
    assert judge(oracle, data, RankingProtocol()).means["mrr@5"] == 0.5


def test_a_table_refuses_a_second_protocol() -> None:
    data, scorer = clustered(ads=90), random_scores(60, 90)
    full, sampled = (
        RankingProtocol(),
        RankingProtocol(candidates="sampled", negatives=9),
    )
    results = ResultTable()
    results.add("random", judge(scorer, data, full).to_json())
    for other, message in (
        (sampled, "candidates=sampled, not all"),
        (replace(full, split="valid"), "split=valid, not test"),
        (replace(full, most_users=9), "users=9, not 60"),
    ):
        with pytest.raises(DataError, match=message):
            results.add("other", judge(scorer, data, other).to_json())
    assert list(results.rows) == ["random"]


@dataclass(frozen=True)
class Seen:
    """Scores by what it is given: the ads of the history alone have a score."""

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        assert is_new
        return np.asarray(binary(history).toarray() @ FOLLOWS, dtype=np.float32)


POPULAR = np.array([0, 0, 0, 0, 0, 5, 6, 0], dtype="f4")
FOLLOWS = np.eye(8, k=1)  # ad i makes ad i + 1 the best


def test_a_short_history_holds_the_latest_clicks_alone() -> None:
    splits = {"train": [[6, 2, 3]], "valid": [[4]], "test": [[5]]}
    data = interactions(splits, ads=8)
    scorer = PopularWhereNothingIsKnown(Seen(), Popularity(POPULAR))
    judged = cold_start(scorer, data, RankingProtocol(cuts=(1,)), [0, 1, 2])
    assert {n: j.means["mrr@1"] for n, j in judged.items()} == {
        "0": 1,  # popularity: 6 is known, though the history does not hold it, so 5
        "1": 1,  # of ad 4 alone
        "2": 1,  # of 3 and 4, and 4 is known, whatever the history holds
        "all": 0,  # of 6 too: 7 shares the place
    }
    kept = latest(table([[5, 1, 3], [2]], 8), 2)
    assert kept.toarray().astype(bool).nonzero()[1].tolist() == [1, 3, 2]
    assert latest(table([[5, 1, 3], [2]], 8), 0).nnz == 0


def test_blocks_do_not_change_a_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    data, scorer = clustered(ads=90), random_scores(60, 90)
    for protocol in (
        RankingProtocol(),
        RankingProtocol(candidates="sampled", negatives=9),
    ):
        whole = judge(scorer, data, protocol)
        monkeypatch.setattr(
            "torchrec_adrec.evaluation.classics.protocol.BLOCK_SCORES", 7 * 90
        )
        parts = judge(scorer, data, protocol)
        monkeypatch.undo()
        for name, values in whole.metrics.items():
            assert np.array_equal(values, parts.metrics[name]), name
