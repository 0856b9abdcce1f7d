"""Sets, vectors and prose through a whole run: what is trained is what is served."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from named_ads import copy_of
from pydantic import TypeAdapter, ValidationError
from rich_rows import Words, genres_of, image_of, rich_config, rich_rows, use_words
from trained_run import make_stages, metrics

from torchrec_adrec.certify.eager import Pairs
from torchrec_adrec.certify.eager import _inputs as eager_inputs
from torchrec_adrec.config.run import load_config
from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.data import text_encoders
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.request import raw_user, raw_users
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.evaluation.funnel.requests import Requests
from torchrec_adrec.export.ad_encoder import AdEncoder
from torchrec_adrec.export.ad_file import AdRows
from torchrec_adrec.export.update import Updater
from torchrec_adrec.runs.ad_changes import open_changes
from torchrec_adrec.schema import AD_ID, Side
from torchrec_adrec.serve.contributions import contributions
from torchrec_adrec.serve.http.schema_model import Bodies
from torchrec_adrec.serve.recommender import Recommender

SETTINGS = (
    "train={batch_size: 128, epochs: 2, evaluate_every: 0, dead_model: warn}",
    "train.patience=null",
    "recommend.candidates=30",
    "retrieval={embedding_dim: 4, hidden: [8], output_dim: 4, fusion: gated}",
    "retrieval.uniform_negatives=16",
    "ranking={model_dim: 4, heads: 1, head_dim: 8, feedforward_dim: 8}",
    "ranking={tables: scratch, blend: none}",
    "retrieval.optimizer={tables_lr: 0.1, dense_lr: 0.02}",
    "ranking.optimizer={tables_lr: 0.1, dense_lr: 0.02}",
)
USER: dict[str, Any] = {
    "user": "u1",
    "likes": ["l2", "l1"],
    "mood": [0.5, -1, 2],
    "query": "kind 1",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rich")
    config = load_config(None, SETTINGS)
    config = config.model_copy(update={"data": rich_config(folder)})
    with pytest.MonkeyPatch.context() as patch:
        use_words(patch)
        make_stages(folder / "run", config)
    return folder / "run"


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Words:
    return use_words(monkeypatch)


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Recommender]:
    with pytest.MonkeyPatch.context() as patch:
        use_words(patch)
        yield Recommender.load(run)


def test_the_ranker_scores_candidates_as_it_was_trained(served: Recommender) -> None:
    """One user's row for all ads gives what a row for each of them gives."""
    ids = served.scorer.ids
    user, ads = served.user_input(USER), served.scorer.features(ids)
    many = pl.DataFrame([USER] * len(ids), strict=False)
    schema = served.encoder.schema
    repeated = served.encoder.encode(raw_users(many, schema), Side.USER)
    ranker: Any = served.scorer.ranker
    with torch.inference_mode():
        once = ranker.dense(*served.scorer.inputs(user, served.scorer.rows(ids)))
        rows = ranker(tower_input(repeated, schema, Side.USER), ads)
    torch.testing.assert_close(once, rows, atol=1e-5, rtol=0)
    assert once.std() > 0.01


@pytest.mark.parametrize(
    ("column", "value"),
    [("likes", None), ("mood", [3.0, 3, 3]), ("query", "kind 2"), ("mood", None)],
)
def test_each_kind_changes_the_scores(
    column: str, value: Any, served: Recommender
) -> None:
    ids = served.scorer.ids
    one, other = (
        served.retriever.retrieve(served.user_input(user), len(ids))[1]
        for user in (USER, USER | {column: value})
    )
    assert np.abs(one - other).max() > 1e-4


def test_the_order_of_a_set_changes_nothing(served: Recommender) -> None:
    other = USER | {"likes": ["l1", "l2", "l1"]}
    answers = [served.recommend(user, 3).ads for user in (USER, other)]
    assert answers[0].equals(answers[1])


def test_answers_show_sets_and_prose_and_no_vectors(served: Recommender) -> None:
    ad = served.recommend(USER, 1).ads.row(0, named=True)
    item = int(ad["item"][1:])
    assert ad["genres"] == sorted(set(genres_of(item))) and "image" not in ad
    assert set(ad) >= {"item", "genres", "title"}
    bodies = Bodies(served.encoder.schema, ServeConfig(), 40, [USER])
    ads: Any = bodies.answer.model_fields["ads"].annotation
    TypeAdapter(ads).validate_python([ad | {AD_ID: str(ad[AD_ID])}])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("mood", [1.0, 2.0]),
        ("mood", [1.0, 2.0, "x"]),
        ("mood", [1.0, 2.0, True]),
        ("mood", "1 2 3"),
        ("mood", [1.0, 2.0, 1e300]),
        ("likes", ["a", "b", "c", "d"]),
        ("likes", "a"),
        ("query", 7),
    ],
)
def test_a_wrong_value_is_refused(column: str, value: Any, served: Recommender) -> None:
    with pytest.raises(DataError, match=column):
        raw_user({column: value}, served.encoder.schema)


def test_blanks_around_prose_make_no_other_vector(
    served: Recommender, words: Words
) -> None:
    """As in the files of the data, where they are cut off and may leave nothing."""
    schema = served.encoder.schema
    for text, same in ((" kind 1\n", "kind 1"), ("  ", None)):
        many = raw_users(pl.DataFrame({"query": [text]}), schema)
        for raw in (raw_user({"query": text}, schema), many):
            actual = served.encoder.encode(raw, Side.USER)["query"]
            raw = raw_user({"query": same}, schema)
            expected = served.encoder.encode(raw, Side.USER)["query"]
            np.testing.assert_array_equal(actual, expected)
    assert words.encoded == []


def test_the_bodies_of_requests_know_the_length_of_a_vector(
    served: Recommender,
) -> None:
    bodies = Bodies(served.encoder.schema, ServeConfig(), 40, [USER])
    assert bodies.expected["mood"] == "a list of 3 finite numbers, or null"
    bodies.recommend.model_validate({"user": USER})
    for mood in ([1, 2], [1, 2, 3, 4], [1, 2, "3"], [1, 2, float("nan")], "x"):
        with pytest.raises(ValidationError):
            bodies.recommend.model_validate({"user": USER | {"mood": mood}})


def test_ads_are_encoded_again_as_they_were(run: Path, words: Words) -> None:
    """All of them, raw from a file, and known prose without its encoder."""
    ads, folder = AdEncoder.open(run), run.parent
    rows = rich_rows().unique("item", keep="last", maintain_order=True)
    names = ["item", "genres", "image", "title"]
    rows = rows.select(names).with_columns(pl.col("genres").str.split("|"))
    rows.write_parquet(folder / "ads.parquet")
    encoded, _ = ads.encode(AdRows.read(folder / "ads.parquet", ads.encoder.schema))
    assert encoded.sort(AD_ID).equals(ads.catalog) and words.encoded == []


def test_a_new_ad_has_a_vector_of_its_own(run: Path, words: Words) -> None:
    ads, folder = AdEncoder.open(run), run.parent
    new = {"item": ["new"], "genres": [["g1"]], "image": [image_of(1)]}
    new["title"] = ["title 1 of new"]
    pl.DataFrame(new).write_parquet(folder / "new.parquet")
    rows, vectors = ads.encode(AdRows.read(folder / "new.parquet", ads.encoder.schema))
    assert words.encoded == ["title 1 of new"]
    assert rows["title"][0].to_list()[-1] == 0 and vectors.shape == (1, 4)
    wrong = pl.DataFrame(new | {"image": [[1.0]]})
    wrong.write_parquet(folder / "wrong.parquet")
    with pytest.raises(DataError, match=r"wrong.parquet:row 1: image: .* 5 numbers"):
        ads.encode(AdRows.read(folder / "wrong.parquet", ads.encoder.schema))


def test_an_updated_ads_vector_and_set_are_served(
    run: Path, served: Recommender, words: Words, tmp_path: Path
) -> None:
    """By towers and ranker, at once and when the update is encoded anew."""
    copy, ads = copy_of(run, tmp_path / "run"), AdEncoder.open(run)
    # Item 1 with the picture and the genres of item 3, whose columns the catalog has.
    raw = {"item": ["i1"], "genres": [genres_of(3)], "image": [image_of(3)]}
    pl.DataFrame(raw | {"title": ["title 1 of 1"]}).write_parquet(
        tmp_path / "1.parquet"
    )
    Updater(copy).apply(AdRows.read(tmp_path / "1.parquet", ads.encoder.schema))
    newest = served.refreshed(copy)

    one, three = (ads.catalog.filter(raw_item=item) for item in ("i1", "i3"))
    names = ["image", *three.select("^genres:.*$").columns]
    expected = one.with_columns(three[name] for name in names)
    columns = {name: expected[name].to_numpy() for name in expected.columns}
    user = served.user_input(USER)
    ad = tower_input(columns, ads.encoder.schema, Side.AD)
    with torch.inference_mode():
        vectors = served.parts.towers(user, ad)
    predicted = served.scorer.score_pairs(user, ad, {}, vectors[2])["click"]
    scores, clicks = scores_of(newest)
    place = served.scorer.ids.tolist().index(one[AD_ID][0])
    assert scores[place] == pytest.approx(float(vectors[0] @ vectors[1].T), abs=1e-5)
    assert clicks[place] == pytest.approx(predicted[0], abs=1e-5)
    before = scores_of(served)
    for now, then in zip((scores, clicks), before, strict=True):
        moved = np.flatnonzero(np.abs(now - then) > 1e-4)
        assert moved.tolist() == [place]

    changes = open_changes(copy, ads.exported)
    again, vector = ads.encode(AdRows.of_catalog(changes.ads, ads.encoder.schema, copy))
    assert again.equals(changes.ads) and words.encoded == []
    np.testing.assert_array_equal(vector, changes.vectors)


def scores_of(
    served: Recommender, raw: dict[str, Any] = USER
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products and clicks of all ads, in the order of their ids."""
    user, ids = served.user_input(raw), served.scorer.ids
    nearest, scores = served.retriever.retrieve(user, len(ids))
    order = np.argsort(nearest)
    assert np.array_equal(nearest[order], ids)
    rows = served.scorer.rows(ids)
    return scores[order], served.scorer.score(user, rows, scores[order])["click"]


def test_certified_inputs_are_those_of_serving(served: Recommender) -> None:
    ids = served.scorer.ids[:5]
    pairs = Pairs([USER], np.zeros(5, dtype=np.int64), ids)
    catalog = served.parts.catalog
    user, ad, joined = eager_inputs(served.encoder, catalog, pairs, np.arange(5))
    features = served.scorer.features(ids)
    assert torch.equal(ad.dense, features.dense) and torch.equal(joined.dense, ad.dense)
    assert torch.equal(ad.sparse.values(), features.sparse.values())
    assert torch.equal(user.dense[2], served.user_input(USER).dense[0])


def test_what_each_column_adds_is_explained(served: Recommender) -> None:
    ad = served.recommend(USER, 1).ads.row(0, named=True)
    row = int(served.scorer.rows(np.array([ad[AD_ID]]))[0])
    table = contributions(served.parts, USER, row, {"click": ad["click"]})
    assert {"mood", "likes", "query", "genres"} <= set(table["column"])
    assert "image" not in table["column"]
    place = served.scorer.ids.tolist().index(ad[AD_ID])
    scores, clicks = scores_of(served)
    for column in ("mood", "likes", "query"):
        without = scores_of(served, USER | {column: None})
        (line,) = table.filter(column=column).to_dicts()
        for name, all_of, rest in (
            ("adds:score", scores, without[0]),
            ("adds:click", clicks, without[1]),
        ):
            expected = all_of[place] - rest[place]
            assert line[name] == pytest.approx(expected, abs=1e-5), column
    (genres,) = table.filter(column="genres").to_dicts()
    assert abs(genres["adds:score"]) > 1e-4 and abs(genres["adds:click"]) > 1e-6


def test_the_gates_are_reported(run: Path) -> None:
    gates = metrics(run, "retrieval")["gates"]
    assert set(gates["user"]) == {"user", "likes", "mood", "query"}
    assert set(gates["ad"]) == {"item", "genres", "image", "title"}
    weights = [w for side in gates.values() for w in side.values()]
    assert all(0 < w < 1 for w in weights) and np.ptp(weights) > 0.01


def test_a_server_without_the_encoder_of_its_users_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Words()
    words.name = "words 2"
    monkeypatch.setitem(text_encoders.ENCODERS, "words", lambda: words)
    with pytest.raises(ConfigError, match="encoded by words 1, but words 2"):
        Recommender.load(run)


def test_the_funnel_is_judged_by_users_with_vectors(
    run: Path, served: Recommender
) -> None:
    """They are compared with their rows of the test split, to the last bit."""
    requests = Requests.draw(run / "data", served.encoder, 20, 0)
    assert len(requests) == 20 and requests.encoded["mood"].shape == (20, 4)
