"""The recommenders of the literature against their formulas and small worlds."""

import logging
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from classics_clicks import clustered, table

from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.evaluation.classics import factors, lightgcn, methods
from torchrec_adrec.evaluation.classics.lightgcn import (
    LightGCNSettings,
    fit_lightgcn,
    graph_of,
    propagate,
)
from torchrec_adrec.evaluation.classics.neighbours import (
    check_memory,
    fit_ease,
    fit_item_knn,
)
from torchrec_adrec.evaluation.classics.popular import (
    fit_popularity,
    fit_recent_popularity,
)
from torchrec_adrec.evaluation.classics.protocol import RankingProtocol, judge

CLICKS = table([[0, 1, 2], [1, 2, 3], [2, 4], [0, 4, 3], [1]], 5)
DENSE = (CLICKS.toarray() > 0).astype(np.float64)
USERS = np.arange(5)


def has_implicit() -> bool:
    try:
        import implicit.cpu.als  # noqa: F401
    except ImportError:
        return False
    return True


def hits(figures: dict[str, Any]) -> float:
    """HR@5 of full ranking."""
    return float(figures["full"]["metrics"]["hr@5"])


NEEDS_IMPLICIT = pytest.mark.skipif(not has_implicit(), reason="needs `implicit`")


def test_item_knn_is_the_shrunk_cosine_of_the_nearest_ads() -> None:
    both = DENSE.T @ DENSE
    lengths = np.sqrt(np.diag(both))
    near = both / (np.outer(lengths, lengths) + 2)
    np.fill_diagonal(near, 0)
    expected = np.zeros_like(near)
    for ad in range(5):  # each scored ad keeps its two nearest
        kept = np.argsort(-near[ad], kind="stable")[:2]
        expected[kept, ad] = near[ad, kept]
    actual = fit_item_knn(CLICKS, neighbours=2, shrink=2)
    scores = actual.scores(CLICKS, USERS, is_new=True)
    # Of equal neighbours either may be kept: the sums of what is kept are the same.
    weights = actual.weights.toarray()  # type: ignore[union-attr]
    assert weights.sum(axis=0) == pytest.approx(expected.sum(axis=0))
    assert scores == pytest.approx(DENSE @ weights)
    everything = fit_item_knn(CLICKS, neighbours=99, shrink=2)
    assert everything.scores(CLICKS, USERS, is_new=True) == pytest.approx(DENSE @ near)


@pytest.mark.parametrize("block", [2, 512])
def test_ease_is_its_closed_form(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "torchrec_adrec.evaluation.classics.neighbours.BLOCK_ADS", block
    )
    inverse = np.linalg.inv(DENSE.T @ DENSE + 3 * np.eye(5))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    scores = fit_ease(CLICKS, l2=3).scores(CLICKS, USERS, is_new=True)
    assert scores == pytest.approx(DENSE @ weights, abs=1e-5)


def test_ease_is_refused_before_its_table_is_made() -> None:
    check_memory(1_000, 5_000_000)
    with pytest.raises(DataError, match=r"100,000 x 100,000 ads, 46.6 GiB"):
        check_memory(100_000, 40 << 30)
    with pytest.raises(DataError, match="set a larger l2"):
        fit_ease(CLICKS, l2=-100)


def test_popularity_counts_and_recent_popularity_counts_the_latest() -> None:
    assert fit_popularity(CLICKS).counts.tolist() == [2, 3, 3, 2, 2]
    # The last quarter of the numbers from 1 to 12: ads 4, 3 and 1.
    recent = fit_recent_popularity(CLICKS, share=0.25)
    assert recent.counts.tolist() == [0, 1, 0, 1, 1]
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        fit_recent_popularity(CLICKS, share=0)


def least_squares() -> factors.LeastSquares:
    rng = np.random.default_rng(0)
    ads = rng.normal(size=(5, 3)).astype("f4")
    return factors.LeastSquares(np.zeros((5, 3), "f4"), ads, confidence=7, l2=0.3)


def test_a_new_user_of_als_solves_the_weighted_squares() -> None:
    model = least_squares()
    solved = model.solve(CLICKS)
    for row, clicked in zip(solved, DENSE, strict=True):
        weight = np.diag(np.where(clicked > 0, 7.0, 1.0))
        left = model.ads.T @ weight @ model.ads + 0.3 * np.eye(3)
        expected = np.linalg.solve(left, model.ads.T @ weight @ clicked)
        assert row == pytest.approx(expected, rel=1e-4)
    assert np.array_equal(
        model.scores(CLICKS, USERS, is_new=True), solved @ model.ads.T
    )


def test_a_new_user_of_bpr_is_the_mean_of_what_his_clicks_add() -> None:
    """Fails when later clicks count for more, or a new user for a known one."""
    rng = np.random.default_rng(0)
    users, ads, of_clicks = (rng.normal(size=(5, 3)).astype("f4") for _ in range(3))
    model = factors.Vectors(users, ads, of_clicks)
    mean = DENSE @ of_clicks / DENSE.sum(axis=1, keepdims=True)
    assert model.scores(CLICKS, USERS, True) == pytest.approx(mean @ ads.T, abs=1e-5)
    known = model.scores(CLICKS[1:3], USERS[1:3], False)
    assert known == pytest.approx(users[1:3] @ ads.T, abs=1e-5)


def test_without_implicit_als_and_bpr_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "implicit", None)
    for name in ("als", "bpr"):
        with pytest.raises(
            ConfigError, match=r"pip install 'torchrec-adrec\[baselines"
        ):
            methods.run_method(name, clustered())


@NEEDS_IMPLICIT
def test_als_folds_a_known_user_in_as_it_fitted_him() -> None:
    data = clustered()
    clicks = data.known("test")
    model = factors.fit_als(
        clicks, factors=8, l2=0.1, confidence=5, iterations=15, seed=0
    )
    known, new = (
        model.scores(clicks, np.arange(60), is_new).ravel() for is_new in (False, True)
    )
    assert np.corrcoef(known.astype("f8"), new.astype("f8"))[0, 1] > 0.99


@pytest.mark.parametrize(
    "name",
    [
        "item_knn",
        "ease",
        "lightgcn",
        pytest.param("als", marks=NEEDS_IMPLICIT),
        pytest.param("bpr", marks=NEEDS_IMPLICIT),
    ],
)
def test_a_method_finds_the_tastes_of_a_clustered_world(name: str) -> None:
    """Popularity finds one held-out ad in three; who knows the taste, nearly all."""
    data = clustered()
    figures = methods.run_method(name, data, grid=SMALL[name])
    popularity = methods.run_method("popularity", data)
    assert hits(figures) > 0.95 > hits(popularity) + 0.3
    # A user who is new, with three clicks, is told apart as well.
    assert figures["cold_start"]["3"]["hr@10"] > 0.9
    unknown = figures["cold_start"]["0"]
    assert unknown == popularity["cold_start"]["0"]


SMALL: dict[str, tuple[dict[str, Any], ...]] = {
    "item_knn": ({"neighbours": 5, "shrink": 1},),
    "two of item_knn": (
        {"neighbours": 1, "shrink": 0},
        {"neighbours": 7, "shrink": 0},
    ),
    "ease": ({"l2": 5.0}, {"l2": 50.0}),
    "als": ({"factors": 8, "l2": 0.1, "confidence": 5.0},),
    "bpr": ({"factors": 8, "rate": 0.05, "l2": 0.01, "iterations": 100},),
    "lightgcn": ({"dim": 8, "epochs": 15, "batch": 64, "negatives": 24, "rate": 0.05},),
}


def test_settings_are_chosen_on_validation_clicks_alone() -> None:
    """Fails when the test clicks choose, or are learnt from."""
    data, grid = clustered(), SMALL["two of item_knn"]
    chosen = methods.run_method("item_knn", data, grid=grid)
    assert chosen["settings"] == grid[1]
    # With the test clicks of another world nothing changes but the test figures.
    other = clustered(seed=5).splits["test"].copy()
    other.indices = (other.indices + 8) % 24
    splits = {**data.splits, "test": other}
    swapped = methods.run_method("item_knn", replace(data, splits=splits), grid=grid)
    assert swapped["tried"] == chosen["tried"]
    assert hits(swapped) < 0.7 < hits(chosen)


def test_lightgcn_propagates_over_the_normalised_graph() -> None:
    graph = graph_of(CLICKS)
    both = np.block([[np.zeros((5, 5)), DENSE], [DENSE.T, np.zeros((5, 5))]])
    degree = both.sum(axis=1)
    dense = torch.from_numpy(both / np.sqrt(np.outer(degree, degree))).float()
    assert torch.allclose(graph @ torch.eye(10), dense)
    vectors = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    actual = propagate(graph, ours, layers=3)
    powers = [torch.linalg.matrix_power(dense, n) for n in range(4)]
    expected = sum(p @ theirs for p in powers) / 4
    assert torch.allclose(actual, expected, atol=1e-6)
    actual.square().sum().backward()
    expected.square().sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_lightgcn_loses_the_same_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean of all clicks' losses, each against the ads drawn, its own left out."""
    torch.manual_seed(0)
    user, ad = torch.randint(20, (50,)), torch.randint(20, 60, (50,))
    drawn, settings = torch.randint(20, 60, (30,)), LightGCNSettings()
    whole, blocks = (torch.randn(60, 8).requires_grad_() for _ in range(2))
    blocks.data.copy_(whole.data)
    u, a, d = (F.normalize(whole[i], dim=1) for i in (user, ad, drawn))
    others = (u @ d.T).masked_fill(ad[:, None] == drawn, -torch.inf)
    assert others.isinf().any()
    logits = torch.cat([(u * a).sum(dim=1, keepdim=True), others], dim=1)
    target = torch.zeros(len(user), dtype=torch.int64)
    expected = F.cross_entropy(logits / settings.temperature, target)
    monkeypatch.setattr(lightgcn, "BLOCK", 7)
    actual = lightgcn._loss(blocks, user, ad, drawn, settings)
    expected.backward()
    actual.backward()
    assert whole.grad is not None and blocks.grad is not None
    assert torch.allclose(actual, expected, rtol=1e-5)
    assert torch.allclose(blocks.grad, whole.grad, atol=1e-6)


def test_lightgcn_is_the_same_for_a_seed_and_learns_by_bpr_too() -> None:
    clicks = clustered().known("test")
    small = LightGCNSettings(dim=8, epochs=2, batch=64, negatives=24)
    first, again = (fit_lightgcn(clicks, small, seed=3) for _ in range(2))
    assert np.array_equal(first.ads, again.ads)
    epochs: list[int] = []
    bpr = replace(small, temperature=0.0, epochs=15, rate=0.05)
    vectors = fit_lightgcn(clicks, bpr, 0, lambda epoch, _: epochs.append(epoch))
    assert epochs == list(range(1, 16))
    assert judge(vectors, clustered(), RankingProtocol()).means["hr@5"] > 0.9


def test_unknown_methods_and_missing_times_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected some of popularity"):
        methods.run_method("svd", clustered())
    with pytest.raises(ConfigError, match="in no order of time"):
        methods.run_method("recent popularity", clustered())
    timed = replace(clustered(), in_time_order=True)
    assert methods.run_method("recent popularity", timed)["settings"]["share"] > 0


def test_nobody_is_left_without_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """Every setting that is tried is logged with its figure."""
    with caplog.at_level(logging.INFO):
        methods.run_method("ease", clustered(), grid=SMALL["ease"])
    assert caplog.text.count("ndcg@10 on valid") == 2


def test_the_best_value_at_the_end_of_a_grid_is_named() -> None:
    grid = tuple({"l2": x, "k": k} for x in (1, 2, 3) for k in (1, 2))
    assert methods.at_an_end({"l2": 3, "k": 1}, grid) == ["l2"]
    assert methods.at_an_end({"l2": 2, "k": 2}, grid) == []


def test_the_sampled_table_is_left_out_where_too_few_ads_are_left() -> None:
    few, many = clustered(), clustered(ads=300, count=10)
    assert "sampled" not in methods.run_method("popularity", few)
    figures = methods.run_method("popularity", many)
    assert figures["sampled"]["protocol"]["candidates"] == "sampled"
    assert figures["sampled"]["metrics"]["hr@10"] > figures["full"]["metrics"]["hr@10"]
