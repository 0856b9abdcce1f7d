"""What the page shows is what the run serves: lists, reasons, fields, reports."""

import json
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import adrec
from html_text import Page, check_self_contained
from named_ads import copy_of, ids_of

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.cli.index import compare
from torchrec_adrec.cli.page import page as page_command
from torchrec_adrec.errors import ConfigError, ManifestError
from torchrec_adrec.export.ad_file import AdIds
from torchrec_adrec.export.update import Updater
from torchrec_adrec.index.compare import COMPARISON
from torchrec_adrec.page import reports
from torchrec_adrec.page.answer import (
    IMPRESSIONS,
    LISTED,
    answer,
    most_shown,
    nearest,
    reasons,
)
from torchrec_adrec.page.form import Field, fields, unseen
from torchrec_adrec.page.likes import Likes, likes
from torchrec_adrec.page.server import APP, arguments
from torchrec_adrec.pipeline.report import metrics_of
from torchrec_adrec.schema import (
    AD_ID,
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
    VectorFeature,
)
from torchrec_adrec.serve.recommender import Recommender


@pytest.fixture(scope="module")
def served(run: Path) -> Recommender:
    return Recommender.load(run)


@pytest.fixture(scope="module")
def user(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "data/example_users.json").read_text())[3])


@pytest.fixture(scope="module")
def counts(served: Recommender) -> Int64s:
    """Other than the impressions, as where negatives were drawn."""
    count = len(served.parts.catalog)
    return np.random.default_rng(0).permutation(count).astype(np.int64)


def test_the_ten_ads_are_those_that_are_served(
    served: Recommender, user: dict[str, Any], counts: Int64s
) -> None:
    shown, expected = answer(served, user, counts), served.recommend(user)
    assert shown.ids == expected.ads[AD_ID].to_list()
    # As text: a browser would round these integers to 53 bits.
    assert shown.ads[AD_ID].dtype == pl.String
    assert shown.ads["place"].to_list() == list(range(1, 11))
    for name in ("click", "score"):
        assert shown.ads[name].to_list() == expected.ads[name].to_list()
    assert shown.candidates == 50 and "total" in shown.milliseconds


def test_popularity_and_retrieval_stand_beside_them(
    served: Recommender, user: dict[str, Any], counts: Int64s
) -> None:
    parts, shown = served.parts, answer(served, user, counts)
    assert shown.popular[IMPRESSIONS].to_list() == sorted(counts, reverse=True)[:10]
    of_ad = dict(zip(parts.catalog[AD_ID], counts, strict=True))
    assert [of_ad[int(ad)] for ad in shown.popular[AD_ID]] == sorted(counts)[:-11:-1]
    ids, scores = served.retriever.index.compare_all(parts.user_vector(user), 10)
    assert nearest(parts, user, 10)[AD_ID].to_list() == ids[0].tolist()
    np.testing.assert_allclose(shown.retrieved["score"], scores[0], atol=1e-6)
    for rival in (shown.popular, shown.retrieved):
        expected = [int(ad) in shown.ids for ad in rival[AD_ID]]
        assert rival[LISTED].to_list() == expected


def test_a_removed_ad_is_not_popular(served: Recommender, counts: Int64s) -> None:
    first = most_shown(served.parts, counts, 3)
    listed = served.scorer.listed.filter(pl.col(AD_ID) != first[AD_ID][0])
    scorer: Any = SimpleNamespace(listed=listed)
    without = most_shown(replace(served.parts, scorer=scorer), counts, 2)
    assert without[AD_ID].to_list() == first[AD_ID][1:].to_list()


def test_reasons_are_the_largest_contributions(
    served: Recommender, user: dict[str, Any], counts: Int64s
) -> None:
    ad = answer(served, user, counts).ids[0]
    explanation = served.explain(user, ad)
    assert explanation.columns is not None
    table = reasons(explanation, "click")
    sizes = [abs(x) for x in explanation.columns["adds:click"]]
    assert [abs(x) for x in table["adds"]] == sorted(sizes, reverse=True)[:8]
    column, value = table.row(0, named=True)["column"], table["value"][0]
    of_ad = served.scorer.show(np.array([ad])).row(0, named=True)
    assert value == str((user | of_ad)[column])


def sparse(name: str, side: Side, kind: Any = "text") -> SparseFeature:
    return SparseFeature(name=name, side=side, source=name, kind=kind)


SCHEMA = Schema(
    dense=(
        DenseFeature(name="age", side=Side.USER, source="age"),
        DenseFeature(name="income", side=Side.USER, source="income"),
    ),
    sparse=(
        sparse("city", Side.USER),
        sparse("device", Side.USER, "hex"),
        sparse("item", Side.AD),
        sparse("brand", Side.AD),
    ),
    sequences=(
        SequenceFeature(
            name="seen", side=Side.USER, source="seen_items", shares_ids_with="item"
        ),
    ),
    labels=(Label(name="click"),),
)


def test_fields_are_typed_by_the_schema() -> None:
    examples: Any = [
        {"age": 34, "income": 2.5, "city": "Delft", "seen_items": ["a", "b"]},
        {"age": None, "income": 3, "city": "Bonn", "seen_items": ["b"]},
        {"age": 2, "city": "Bonn", "device": "68fd1e64"},
    ]
    assert fields(SCHEMA, examples) == [
        Field("age", "whole number"),
        Field("income", "number"),
        Field("device", "hex", ("68fd1e64",)),
        Field("city", "text", ("Bonn", "Delft")),
        Field("seen_items", "list", ("b", "a")),
    ]
    # A browser would show 2 ** 53 + 1 as 2 ** 53.
    assert fields(SCHEMA, [{"age": 2**53 + 1}])[0].kind == "number"
    assert fields(SCHEMA, [])[0].kind == "number"


def test_a_vector_has_no_field_and_is_named() -> None:
    mood = VectorFeature(name="mood", side=Side.USER, source="mood", size=3)
    schema = SCHEMA.model_copy(update={"vectors": (mood,)})
    assert unseen(schema) == ["mood"] and unseen(SCHEMA) == []
    assert fields(schema, []) == fields(SCHEMA, [])


COUNTS = np.array([5, 9, 7, 100, 2])


def parts_of(schema: Schema) -> Any:
    catalog = pl.DataFrame(
        {
            "ad_id": [1, 2, 3, 4, 5],
            # As often as negatives were drawn: nobody was shown those.
            "impressions": [99, 9, 7, 100, 2],
            "item": [2, 3, 4, 1, 3],  # 1: unknown to training
            "raw_item": ["a", "b", "c", "new", "b"],
            "raw_brand": ["x", None, "y", "z", "x"],
            "raw_genres": [["g", "h"], [], ["g"], ["h"], []],
        }
    )
    return SimpleNamespace(encoder=SimpleNamespace(schema=schema), catalog=catalog)


def test_a_new_user_picks_items_that_training_knew() -> None:
    offer = likes(parts_of(SCHEMA), COUNTS)
    assert isinstance(offer, Likes)
    titles = [("b", "b"), ("c", "c · y"), ("a", "a · x")]  # the most shown first
    assert list(offer.items.items()) == titles
    assert offer.user(["a", "c"]) == {"seen_items": ["a", "c"]}


def test_items_are_named_by_sets_too_and_by_no_vector() -> None:
    genres = SequenceFeature(
        name="genres", side=Side.AD, source="genres", ordered=False, max_length=5
    )
    image = VectorFeature(name="image", side=Side.AD, source="image", size=3)
    schema = SCHEMA.model_copy(
        update={
            "sparse": SCHEMA.sparse[:3],  # no brand
            "sequences": (*SCHEMA.sequences, genres),
            "vectors": (image,),
        }
    )
    offer = likes(parts_of(schema), COUNTS)
    assert isinstance(offer, Likes)
    assert offer.items == {"b": "b", "c": "c · g", "a": "a · g, h"}


def test_without_a_history_of_ads_the_page_says_why() -> None:
    alone = SequenceFeature(name="seen", side=Side.USER, source="seen_items")
    for sequences in ((), (alone,)):
        schema = SCHEMA.model_copy(update={"sequences": sequences})
        offer = likes(parts_of(schema), COUNTS)
        assert isinstance(offer, str) and "shares_ids_with" in offer


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    run = tmp_path / "shop"
    (run / "data").mkdir(parents=True)
    text = "# Run report\n\nSeed 0\n\n## Index\n\nof it\n\n## Training\n\nsteps\n"
    (run / "report.md").write_text(f"{text}\n## Ranker\n\n![x](ranking/no.png)\n")
    (run / "data/report.md").write_text("# The data\n\n1,000 rows\n")
    log = "12:00:00 WARNING a.b | odd `x` <b>\n12:00:01 INFO a.b | fine\n"
    (run / "run.log").write_text(log + log)
    return run


def test_each_tab_shows_its_part_of_the_reports(reported: Path) -> None:
    pages = [f(reported) for f in (reports.quality, reports.data, reports.training)]
    quality, data, training = (Page(page) for page in pages)
    for page in (quality, data, training):
        check_self_contained(page)
    assert "of it" in quality.text and "Ranker" in quality.text
    assert "steps" not in quality.text and "steps" in training.text
    assert "1,000 rows" in data.text and "of it" not in training.text
    assert training.text.count("odd `x` <b>") == 1 and "fine" not in training.text


def test_the_kinds_of_index_appear_once_they_were_compared(
    reported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = SimpleNamespace(build_id="old")
    monkeypatch.setattr(reports, "load_record", lambda *_: record)
    assert f"adrec index compare --out {reported}" in reports.quality(reported)
    row = {"kind": "hnsw", "refusal": "", "recall": 0.9876, "bytes_per_ad": 12.3}
    refused = {"kind": "ivf_pq", "refusal": "too | few"}
    kinds = [row | {"milliseconds": {"p50": 0.5}}, refused]
    compared = {"title": "t", "export": "old", "kinds": kinds}
    (reported / COMPARISON).write_text(json.dumps(compared))
    page = Page(reports.quality(reported))
    assert "no longer" not in page.text
    (table,) = page.tables
    assert table[4:8] == ["hnsw", "0.9876", "0.500", "12"]
    assert table[8:10] == ["ivf_pq", "refused: too | few"]
    record.build_id = "new"
    assert "no longer those of the run" in Page(reports.quality(reported)).text


def test_the_page_shows_what_index_compare_has_written(
    run: Path, tmp_path: Path
) -> None:
    copied = copy_of(run, tmp_path / "run")
    (copied / "config.yaml").write_bytes((run / "data/config.yaml").read_bytes())
    compare(copied, ["exact"])
    page = Page(reports.quality(copied))
    (table,) = page.tables
    assert table[4:6] == ["exact", "1.0000"] and len(page.all("img")) == 1
    assert "no longer" not in page.text


def test_figures_of_a_stage_that_was_made_again_are_called_old(
    run: Path, tmp_path: Path
) -> None:
    copied = copy_of(run, tmp_path / "run")
    reported = {name: metrics_of(copied, name) for name in ("export", "ranking")}
    reported["export"]["loss"] = float("nan")  # is not equal to itself
    (copied / "export/metrics.json").write_text(json.dumps(reported["export"]))
    (copied / "metrics.json").write_text(json.dumps(reported))
    for page in (reports.quality, reports.training):
        assert "Old figures" not in page(copied)
    (copied / "export/metrics.json").write_text("{}")
    for page in (reports.quality, reports.training):
        assert "since this report export was made again" in page(copied)


def test_reports_that_are_missing_name_the_command(tmp_path: Path) -> None:
    assert f"adrec run --out {tmp_path}" in reports.quality(tmp_path)
    assert f"adrec prepare --out {tmp_path}" in reports.data(tmp_path)
    assert "report.md has no such section" in reports.training(tmp_path)


def test_a_run_that_cannot_be_served_is_refused_first(
    run: Path, tmp_path: Path
) -> None:
    stages = {"retrieval", "export", "index", "ranking"}
    assert set(reports.check_run(run)) == stages | {reports.CHANGES}
    with pytest.raises(ConfigError, match="no such run"):
        reports.check_run(tmp_path / "none")
    with pytest.raises(ManifestError, match="retrieval is missing; run `adrec train"):
        reports.check_run(tmp_path)
    done = adrec("page", "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")


def test_an_updated_run_is_opened_again(updater: Updater) -> None:
    before = reports.check_run(updater.run)
    ad = updater.ads.catalog[AD_ID][0]
    updater.apply(remove=AdIds.read(ids_of(updater.run.parent, ad)))
    after = reports.check_run(updater.run)
    assert {name for name in after if after[name] != before[name]} == {reports.CHANGES}


def test_the_server_listens_here_and_tells_nobody(tmp_path: Path) -> None:
    words = arguments(tmp_path, "127.0.0.1", 8501)
    for option in (
        "--server.address=127.0.0.1",
        "--browser.gatherUsageStats=false",
        "--server.headless=true",
        "--client.showErrorDetails=none",  # else a bug shows its traceback to visitors
    ):
        assert option in words
    assert signature(page_command).parameters["host"].default == "127.0.0.1"
    assert words[:2] == ["run", str(APP)] and words[-2:] == ["--", str(tmp_path)]
