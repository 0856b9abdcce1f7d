"""An explanation follows the served numbers, stage by stage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import adrec

from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.errors import DataError, PredictionError
from torchrec_adrec.schema import AD_ID, SCORE, Side
from torchrec_adrec.serve.recommender import Recommender

K = 50  # candidates of the run
TOP = 5


@pytest.fixture(scope="module")
def served(run: Path) -> Recommender:
    return Recommender.load(run)


@pytest.fixture(scope="module")
def user(run: Path) -> dict[str, Any]:
    users = json.loads((run / "data/example_users.json").read_text())
    return dict(users[3])


def test_every_stage_is_told(served: Recommender, user: dict[str, Any]) -> None:
    ranked = served.recommend(user, K).ads[AD_ID].to_list()
    ids, scores = served.retriever.index.compare_all(
        served.parts.user_vector(user), len(served.scorer.ids)
    )
    for place, ad in enumerate(ranked, start=1):
        explained = served.explain(user, ad, TOP)
        assert explained.ranking is not None and explained.retrieval is not None
        assert explained.ranking.place == place
        assert explained.stage == ("shown" if place <= TOP else "ranked too low")
        assert ids[0][explained.retrieval.place - 1] == ad
        if place > TOP + 2:
            break
    lost = int(ids[0][-1])
    explained = served.explain(user, lost, TOP)
    assert explained.stage == "not retrieved" and explained.retrieval is not None
    assert (
        explained.retrieval.place == explained.retrieval.ads == len(served.scorer.ids)
    )
    assert (
        explained.retrieval.score
        < explained.retrieval.cut
        == pytest.approx(scores[0][K - 1])
    )
    assert "does not return it" in "\n".join(explained.lines)
    explained = served.explain(user, 5, TOP)
    assert (explained.stage, explained.columns) == ("not in the catalog", None)


def test_an_ad_that_is_not_eligible_is_told(
    served: Recommender, user: dict[str, Any]
) -> None:
    best, second = served.recommend(user, 2).ads[AD_ID].to_list()
    others = served.scorer.ids[served.scorer.ids != best]
    explained = served.explain(user, best, TOP, eligible=others)
    assert explained.stage == "not eligible" and explained.columns is not None
    explained = served.explain(user, second, TOP, eligible=others)
    assert explained.ranking is not None and explained.ranking.place == 1
    assert explained.retrieval is not None and explained.retrieval.ads == len(others)


def test_an_ad_that_the_index_misses_is_told(
    served: Recommender, user: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (nearest, *_), _ = served.parts.retrieve(user)
    search = served.retriever.index.search

    def miss(vectors: Any, k: int, eligible: Any = None) -> Any:
        ids, scores = search(vectors, k + 1, eligible)
        return ids[:, 1:], scores[:, 1:]

    monkeypatch.setattr(served.retriever.index, "search", miss)
    explained = served.explain(user, int(nearest), TOP)
    assert explained.stage == "missed by the index"
    assert explained.retrieval is not None and explained.retrieval.place == 1


def test_a_column_adds_what_a_request_without_it_loses(
    served: Recommender, user: dict[str, Any]
) -> None:
    """A user's columns, against requests that leave each of them out."""
    (ad,) = served.recommend(user, 1).ads[AD_ID].to_list()
    columns = served.explain(user, ad).columns
    assert columns is not None
    given = {name for name, value in user.items() if value not in (None, "", [])}
    of_user = columns.filter(side="user")
    assert set(of_user["column"]) == given
    assert set(columns.filter(side="ad")["column"]) == {
        "C2",
        "C14",
        "C15",
        "C18",
        "C25",
    }
    whole = predictions(served, user, ad)
    for row in of_user.iter_rows(named=True):
        without = {n: v for n, v in user.items() if n != row["column"]}
        expected = predictions(served, without, ad)
        for label, value in whole.items():
            adds = value - expected[label]
            assert row[f"adds:{label}"] == pytest.approx(adds, rel=1e-3, abs=1e-6)
    assert of_user.select(pl.col("^adds:.*$").abs().max()).min_horizontal().item() > 0


def predictions(served: Recommender, user: dict[str, Any], ad: int) -> dict[str, float]:
    """What a request for this one ad says, the towers' score included."""
    (row,) = served.recommend(user, 1, eligible=np.array([ad])).ads.to_dicts()
    return {name: row[name] for name in (*served.scorer.schema.label_names, SCORE)}


def test_an_ads_column_adds_what_another_ad_of_the_same_rest_lacks(
    served: Recommender, user: dict[str, Any]
) -> None:
    """Without a column its ids are those of a missing value, in tables of both."""
    encoder, scorer = served.encoder, served.scorer
    ad = int(scorer.ids[7])
    columns = served.explain(user, ad).columns
    assert columns is not None
    (adds,) = columns.filter(column="C2")["adds:score"].to_list()
    row = {name: column[7:8].copy() for name, column in scorer.columns.items()}
    names = [f.name for f in encoder.schema.sparse if f.source == "C2"]
    for name in names:
        row[name][:] = 0  # the id of a missing value
    other = tower_input(row, encoder.schema, Side.AD)
    vectors = [scorer.features(np.array([ad])), other]
    of_ads = [served.parts.towers.ad_tower(v).detach().numpy()[0] for v in vectors]
    whole, without = (served.parts.user_vector(user)[0] @ v for v in of_ads)
    assert adds == pytest.approx(whole - without, abs=1e-6) and abs(adds) > 1e-6


def test_nothing_known_and_nothing_right(served: Recommender) -> None:
    ad = int(served.scorer.ids[0])
    columns = served.explain({}, ad).columns
    assert columns is not None and set(columns["side"]) == {"ad"}
    with pytest.raises(DataError, match="unknown user columns"):
        served.explain({"typo": 1}, ad)


def test_features_that_are_not_of_the_raw_values_are_refused(
    served: Recommender, user: dict[str, Any]
) -> None:
    """The explained model would be another one than the served."""
    scorer = served.scorer
    other = scorer.ranker.final_logits.register_forward_hook(
        lambda _, __, logits: logits + 0.1 * (len(logits) != K)
    )
    try:
        ad = int(served.recommend(user, 1).ads[AD_ID][0])
        with pytest.raises(PredictionError, match="is served as "):
            served.explain(user, ad)
    finally:
        other.remove()


def test_the_command(run: Path, served: Recommender) -> None:
    users = json.loads((run / "data/example_users.json").read_text())
    (ad,) = served.recommend(users[3], 1).ads[AD_ID].to_list()
    done = adrec("explain", "--out", run, "--user", "3", ad)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ad {ad}: shown\nretrieval: place ")
    assert "What each column adds" in done.stdout and "adds:click" in done.stdout
