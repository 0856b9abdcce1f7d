"""The lists and the reasons of the page are those that the run serves."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.page.answer import (
    IMPRESSIONS,
    LISTED,
    answer,
    most_shown,
    nearest,
    reasons,
)
from torchrec_adrec.schema import (
    AD_ID,
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
