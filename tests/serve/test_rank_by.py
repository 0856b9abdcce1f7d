"""The served list is in the order of the formula, or the recommender is not loaded."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.config.run import RecommendConfig
from torchrec_adrec.errors import ConfigError, PredictionError
from torchrec_adrec.schema import Label, Schema, Side, SparseFeature
from torchrec_adrec.serve.parts import Parts
from torchrec_adrec.serve.rank_by import RankBy
from torchrec_adrec.serve.recommendation import Recommendation
from torchrec_adrec.serve.recommender import Recommender

SCHEMA = Schema(
    dense=(),
    sparse=tuple(
        SparseFeature(name=name, side=side, source=name, kind="text", num_embeddings=1)
        for name, side in (("city", Side.USER), ("brand", Side.AD))
    ),
    labels=(Label(name="click"), Label(name="value", kind="value", max_value=9)),
)
IDS = np.arange(10, 16)
CATALOG = pl.DataFrame(
    {
        "ad_id": IDS,
        "brand": ["a", "b", "c", "d", "e", "f"],
        "bid": [1, 2, 3, 3, 2, 1],
        "price": [1.0, None, 3.0, 4.0, 5.0, 0.0],
        "value": [0.0] * 6,
    }
)
# As an index returns them: in no order that means anything here.
RETRIEVED = np.array([13, 10, 15, 12, 14, 11])
CLICK = {10: 0.5, 11: 0.4, 12: 0.2, 13: 0.2, 14: 0.1, 15: 0.5}
VALUE = {10: 1.0, 11: 9.0, 12: 2.0, 13: 2.0, 14: 8.0, 15: 1.0}


def recommend(rank_by: str | None, top: int = 6) -> Recommendation:
    """One request to a recommender whose models are tables of known predictions."""

    def score(_: Any, rows: Any, *__: Any) -> dict[str, Any]:
        predictions = (("click", CLICK), ("value", VALUE))
        ids = IDS[rows].tolist()
        return {n: np.array([p[i] for i in ids]) for n, p in predictions}

    retriever: Any = SimpleNamespace(
        retrieve=lambda *_: (RETRIEVED, np.arange(6, dtype=np.float32)),
        index=SimpleNamespace(count=6),
    )
    catalog = CATALOG.drop("value")

    scorer: Any = SimpleNamespace(
        score=score,
        rows=lambda ids: np.searchsorted(IDS, ids),
        schema=SCHEMA,
        shown=catalog,
        shown_of=lambda rows: catalog.drop("ad_id")[rows].get_columns(),
    )
    one_user = {"city": np.zeros(1, np.int32)}
    encoder: Any = SimpleNamespace(schema=SCHEMA, encode=lambda *_: one_user)
    crosses: Any = SimpleNamespace(of=lambda *_: {})
    settings = RecommendConfig(top=1, rank_by=rank_by)
    unused: Any = None
    models = encoder, retriever, scorer, crosses
    parts = Parts(*models, settings, unused, unused, unused, unused)
    return Recommender(parts).recommend({}, top)


@pytest.mark.parametrize(
    ("rank_by", "expected"),
    [
        (None, [10, 15, 11, 12, 13, 14]),
        ("click", [10, 15, 11, 12, 13, 14]),
        ("click * value", [11, 14, 10, 15, 12, 13]),
        ("click * bid", [11, 12, 13, 10, 15, 14]),
        ("-bid", [10, 15, 11, 14, 12, 13]),
    ],
)
def test_the_list_is_ordered_by_the_formula_then_by_ad(
    rank_by: str | None, expected: list[int]
) -> None:
    assert recommend(rank_by).ads["ad_id"].to_list() == expected
    assert recommend(rank_by, top=2).ads["ad_id"].to_list() == expected[:2]


def test_the_value_of_the_formula_is_in_the_answer() -> None:
    ads = recommend("click * bid").ads
    expected = [CLICK[ad["ad_id"]] * ad["bid"] for ad in ads.to_dicts()]
    assert ads["rank_score"].to_list() == expected
    assert "rank_score" not in recommend("click").ads.columns


@pytest.mark.parametrize(
    ("rank_by", "shown", "message"),
    [
        (
            "click * bit",
            CATALOG.drop("value"),
            r"\['bit'\] in 'click \* bit', expected predictions \['click', 'value'\] or"
            r" numbers of the catalog \['bid', 'price'\]",
        ),
        ("brand", CATALOG.drop("value"), r"unknown|\['brand'\] in"),
        ("ad_id", CATALOG.drop("value"), r"\['ad_id'\] in"),
        ("click * price", CATALOG.drop("value"), "price is missing for 1 of 6 ads"),
        ("click * value", CATALOG, r"\['value'\] are labels and columns"),
    ],
)
def test_names_are_checked_when_it_is_loaded(
    rank_by: str, shown: pl.DataFrame, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RankBy.of(rank_by, SCHEMA, shown)


def test_a_division_by_0_is_an_error_and_no_order() -> None:
    shown = CATALOG.select("ad_id", pl.col("price").fill_null(1))
    formula = RankBy.of("click / price", SCHEMA, shown)
    with pytest.raises(PredictionError, match="not finite for 1 of 6 ads"):
        formula.score({"click": np.ones(6), "value": np.ones(6)}, np.arange(6))


def test_the_default_is_the_first_label_whatever_its_name() -> None:
    labels = (Label(name="ad-click"), Label(name="click"))
    schema = SCHEMA.model_copy(update={"labels": labels})
    formula = RankBy.of(None, schema, CATALOG)
    first = np.array([0.1, 0.2])
    score = formula.score({"ad-click": first, "click": 1 - first}, np.arange(2))
    assert score.tolist() == first.tolist()
