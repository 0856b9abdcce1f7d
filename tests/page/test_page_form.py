"""What a person can set of a user: typed fields, and items that he likes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.page.form import Field, fields, unseen
from torchrec_adrec.page.likes import Likes, likes
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
    VectorFeature,
)


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
