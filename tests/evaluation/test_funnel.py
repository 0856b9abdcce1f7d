"""The served funnel judged by the truth: held against brute force, stage by stage."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from torchrec_adrec.config.objectives import Conditional
from torchrec_adrec.config.run import EvaluationConfig
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.prepare.held_out_users import FILE, TEST_ROW
from torchrec_adrec.errors import ConfigError, DataError, ManifestError
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.evaluation.below import below_baselines
from torchrec_adrec.evaluation.funnel import judge
from torchrec_adrec.evaluation.funnel.judge import Judge, PerUser, open_judge
from torchrec_adrec.evaluation.funnel.losses import LEVELS, LOSSES
from torchrec_adrec.evaluation.funnel.report import (
    evaluate_funnel,
    read_per_user,
    report_of,
)
from torchrec_adrec.evaluation.funnel.worth import TrueWorth
from torchrec_adrec.evaluation.true_top import ads_of
from torchrec_adrec.pipeline.funnel_table import funnel_lines, print_funnel
from torchrec_adrec.runtime.files import HASHES, save_hashes, sha256
from torchrec_adrec.schema import AD_ID
from torchrec_adrec.serve.rank_by import RankBy
from torchrec_adrec.serve.recommender import Recommender

USERS = 25
SETTINGS = EvaluationConfig(funnel_users=USERS)


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.load(run)


@pytest.fixture
def restored(recommender: Recommender) -> Iterator[Recommender]:
    """For tests that change its settings."""
    before = recommender.parts
    yield recommender
    recommender.parts = before


@pytest.fixture(scope="module")
def report(run: Path, recommender: Recommender) -> dict[str, Any]:
    return evaluate_funnel(run, recommender, SETTINGS, 0)


@pytest.fixture(scope="module")
def per_user(run: Path, report: dict[str, Any]) -> pl.DataFrame:
    frame = read_per_user(run)
    assert frame is not None and len(frame) == report["protocol"]["users"] == USERS
    return frame


def opened(run: Path, recommender: Recommender, seed: int = 0) -> Judge:
    return open_judge(run, recommender, USERS, 2, seed, {})


def test_the_losses_add_up(report: dict[str, Any], per_user: pl.DataFrame) -> None:
    total = report["losses"]["total"]["mean"]
    sums = sum(report["losses"][name]["mean"] for name in LOSSES)
    assert sums == pytest.approx(total, abs=1e-9)
    served = report["rows"]["funnel"]["mean"]
    assert report["oracle"] - total == pytest.approx(served, abs=1e-9)
    oracle, deep, exact, index, funnel = (per_user[n].to_numpy() for n in LEVELS)
    assert (oracle >= deep).all() and (deep >= exact).all() and (index >= funnel).all()
    assert (exact == index).all(), "the index of 200 ads is exact"
    assert report["losses"]["ranker"]["mean"] > 0
    assert len(per_user["row"].unique()) == USERS


def test_oracle_and_served_list_by_brute_force(
    run: Path, recommender: Recommender, per_user: pl.DataFrame
) -> None:
    """By the law itself and by single requests, at each row's own time and device."""
    known, catalog = KnownRows.of(run / "data"), load_catalog(run / "data")
    numbers, ids = ads_of(catalog, run / "data"), catalog[AD_ID].to_numpy()
    judged = opened(run, recommender)
    users, unborn = judged.requests.users(), 0
    for q, (row, user) in enumerate(
        zip(per_user.iter_rows(named=True), users, strict=True)
    ):
        shown = known.truth.row(row["row"], named=True)
        worth = known.world.worth(
            np.array([shown["user"]]), numbers, "click", shown["time"], shown["device"]
        )[0]
        born = known.world.ads.birth[numbers] <= shown["time"]
        # Few unborn ads would be among the best, so they are looked for themselves.
        assert (judged.worth.eligible(q) == born).all()
        unborn += int((~born).sum())
        best = np.sort(worth[born])[-10:]
        assert row["oracle"] == pytest.approx(best.sum(), abs=1e-9)
        answer = recommender.recommend(user, eligible=born).ads
        places = np.searchsorted(ids, answer[AD_ID].to_numpy())
        assert row["funnel"] == pytest.approx(worth[places].sum(), abs=1e-9)
        hits = (worth[places] >= best[0]).mean()
        assert row["funnel: recall"] == pytest.approx(hits)
    assert unborn > 0, "some ads may not be shown yet"


def test_a_perfect_ranker_loses_nothing(
    run: Path, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = opened(run, recommender)
    # The first request is asked twice, to warm up.
    requests = iter([0, *range(USERS)])

    def score(_: Any, rows: Any, *others: Any) -> dict[str, Any]:
        worth, _ = judged.worth.of(next(requests), judged.top)
        click = worth[rows]
        return {"click": click, "engagement": click, "value": click}

    monkeypatch.setattr(recommender.scorer, "score", score)
    losses = report_of(judged, judged.all(), 0)["losses"]
    assert losses["ranker"]["mean"] == 0
    assert losses["truncation"]["mean"] > 0


def test_with_all_ads_as_candidates_only_the_ranker_loses(
    run: Path, restored: Recommender
) -> None:
    update = {"candidates": 10_000}
    settings = restored.settings.model_copy(update=update)
    restored.parts = replace(restored.parts, settings=settings)
    losses = report_of(judged := opened(run, restored), judged.all(), 0)["losses"]
    for name in ("tower", "truncation", "index"):
        assert losses[name]["mean"] == 0, name
    assert losses["ranker"]["mean"] == losses["total"]["mean"] > 0


def test_an_index_that_errs_is_blamed(
    run: Path, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves out the nearest ads; the towers and the exact search are as before."""
    search = recommender.retriever.index.search

    def without_the_nearest(queries: Any, k: int, eligible: Any = None) -> Any:
        ids, scores = search(queries, min(k + 30, 150), eligible)
        return ids[:, -k:], scores[:, -k:]

    before = opened(run, recommender).all().values
    monkeypatch.setattr(recommender.retriever.index, "search", without_the_nearest)
    after = opened(run, recommender).all().values
    for name in ("oracle", "deep", "exact"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-12)
    assert np.mean(after["index"]) < np.mean(before["index"])


def test_equal_seeds_equal_tables(
    run: Path, recommender: Recommender, report: dict[str, Any]
) -> None:
    def without_times(seed: int) -> dict[str, Any]:
        judged = opened(run, recommender, seed)
        return report_of(judged, judged.all(), seed)

    again, other = without_times(0), without_times(1)
    for name in ("protocol", "oracle", "losses", "rows", "candidates"):
        assert again[name] == report[name]
    assert other["protocol"]["seed"] == 1 and other["oracle"] != report["oracle"]


def test_users_of_training_rows_are_refused(
    run: Path, recommender: Recommender, tmp_path: Path
) -> None:
    """A file that says it holds test rows, and holds rows that training has read."""
    data = tmp_path / "data"
    shutil.copytree(run / "data", data)
    kept = pl.read_parquet(data / FILE)
    raw = [name for name in kept.columns if not name.startswith("test:")]
    moved = kept.drop(raw).hstack(kept.select(raw)[::-1])
    moved.write_parquet(data / FILE)
    run_copy = tmp_path
    for name in ("export", "ranking", "index", "retrieval"):
        (run_copy / name).symlink_to(run / name)
    with pytest.raises(ManifestError, match=FILE):
        opened(run_copy, recommender)
    hashes = json.loads((data / HASHES).read_text())
    save_hashes(data, hashes | {FILE: sha256(data / FILE)})
    with pytest.raises(ManifestError, match="are not those of the test split"):
        opened(run_copy, recommender)
    save_hashes(data, {n: h for n, h in hashes.items() if n != FILE})
    with pytest.raises(ManifestError, match="prepared by an earlier version"):
        opened(run_copy, recommender)
    # The world's users have rows in all splits, which a split by user rules out.
    kept.write_parquet(data / FILE)
    save_hashes(data, hashes | {FILE: sha256(data / FILE)})
    figures = json.loads((data / "report.json").read_text())
    (data / "report.json").write_text(json.dumps(figures | {"split_by": "user"}))
    with pytest.raises(DataError, match="has training rows too"):
        opened(run_copy, recommender)


def test_without_a_truth_the_clicks_of_the_test_rows_count(
    run: Path, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "has_truth", lambda data: False)
    judged = opened(run, recommender)
    figures = report_of(judged, judged.all(), 0)
    assert figures["oracle"] == 1
    sums = sum(figures["losses"][name]["mean"] for name in LOSSES)
    assert sums == pytest.approx(1 - figures["rows"]["funnel"]["mean"], abs=1e-9)
    test = pl.read_parquet(run / "data/test/*.parquet").with_row_index("row")
    ids = recommender.scorer.ids
    user = judged.requests.users()[0]
    row = test.row(int(judged.requests.rows[0]), named=True)
    mine = test.filter(pl.col("click") == 1)
    if row["user_key"] == -1:
        mine = mine.filter(pl.col("row") == row["row"])
    else:
        mine = mine.filter(pl.col("user_key") == row["user_key"])
    clicked = set(mine[AD_ID])
    _, relevant = judged.worth.of(0, judged.top)
    assert set(ids[relevant]) == clicked
    served = recommender.recommend(user).ads[AD_ID].to_list()
    recall = len(clicked & set(served)) / min(10, len(clicked))
    per_user = judged.all().values
    assert per_user["funnel"][0] == pytest.approx(recall)
    assert per_user["funnel: recall"][0] == pytest.approx(recall)


def test_worth_follows_the_served_order(run: Path, recommender: Recommender) -> None:
    data, catalog = run / "data", load_catalog(run / "data")
    schema, rows = recommender.encoder.schema, np.arange(5)
    known, numbers = KnownRows.of(data), ads_of(catalog, data)

    def worth(text: str, **given: str) -> Any:
        order = RankBy.of(text, schema, recommender.scorer.shown)
        rules = {name: Conditional(given=label) for name, label in given.items()}
        return TrueWorth.read(data, rows, catalog, order, rules).of(3, 10)[0]

    shown = known.truth.row(3, named=True)
    value = known.world.worth(
        np.array([shown["user"]]), numbers, "value", shown["time"], shown["device"]
    )[0]
    np.testing.assert_allclose(worth("click * value"), value, rtol=1e-12)
    # Given a click, the predicted value is the product already.
    np.testing.assert_allclose(worth("value", value="click"), value, rtol=1e-12)
    with pytest.raises(ConfigError, match="given a click alone"):
        worth("value", value="engagement")


def test_too_few_ads_are_refused(
    run: Path, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = opened(run, recommender)
    few = np.zeros(len(judged.vectors), dtype=bool)
    few[:9] = True
    monkeypatch.setattr(TrueWorth, "eligible", lambda *_: few)
    with pytest.raises(DataError, match=r"9 ads may be shown .* expected at least 10"):
        judged.all()


def test_table_picture_and_report_tell_all(run: Path, report: dict[str, Any]) -> None:
    console = Console(width=140)
    with console.capture() as printed:
        print_funnel(report, console)
    text = "\n".join(funnel_lines(report))
    names = [*(f"{name} loss" for name in LOSSES), "oracle", "funnel, as served"]
    names += ["retrieval alone", "item-item", "popularity", "random", "seed 0"]
    for name in [*names, "requests a second"]:
        assert name in printed.get() and name in text, name
    assert "funnel/funnel.png" in text and "-0.0000" not in printed.get()
    assert (run / "funnel/funnel.png").stat().st_size > 0
    saved = json.loads((run / "funnel/metrics.json").read_text())
    assert saved["rows"] == report["rows"] and set(saved["made_from"]) == {
        *("retrieval", "export", "index", "ranking")
    }


def test_lists_below_those_without_a_model_are_a_warning(
    report: dict[str, Any],
) -> None:
    rows = {name: {"mean": 1.0} for name in ("funnel", "item-item", "random")}
    rows |= {"popularity": {"mean": 1.5}}
    assert below_baselines({"funnel": {"rows": rows}}) == [
        "the worth of the served lists, 1.0000, is below 1.5000 of popularity"
    ]


def test_rows_stand_for_requests(run: Path, recommender: Recommender) -> None:
    judged = opened(run, recommender)
    kept = pl.read_parquet(run / "data" / FILE)
    assert set(judged.requests.rows) <= set(kept[TEST_ROW])
    larger = open_judge(run, recommender, USERS + 10, 2, 0, {}).requests
    assert set(judged.requests.rows) < set(larger.rows)
    assert PerUser().frame(judged.requests.rows).columns == ["row"]
