"""A schema that could be read in two ways is refused, and a saved one comes back."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from torchrec_adrec.errors import SchemaError
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)

CITY = SparseFeature(name="city", side=Side.USER, source="city", kind="text")
BRAND = SparseFeature(name="brand", side=Side.AD, source="brand", kind="text")
CODE = SparseFeature(name="code", side=Side.AD, source="code", kind="hex")


def sequence(name: str, shares: str | None, side: Side = Side.USER) -> SequenceFeature:
    return SequenceFeature(name=name, side=side, source=name, shares_ids_with=shares)


def schema(**changes: Any) -> Schema:
    parts: dict[str, Any] = {
        "dense": (),
        "sparse": (CITY, BRAND, CODE),
        "labels": (Label(name="click"),),
    }
    return Schema(**parts | changes)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sequences": (sequence("seen", "city"),)}, "one sequence may share the ids"),
    ({"sequences": (sequence("seen", ""),)}, "one sequence may share the ids"),
    ({"sequences": (sequence("seen", "code"),)}, "of its own kind"),
    (
        {"sequences": (sequence("seen", "brand"), sequence("bought", "brand"))},
        "one sequence may share the ids",
    ),
    (
        {"sequences": (sequence("seen", None, Side.AD),)},
        "what an ad has several of is a set",
    ),
    ({"sparse": (CITY,)}, "the ad's side needs an id, a number or a vector"),
    ({"labels": ()}, "the first label must be binary"),
    ({"labels": (Label(name="v", kind="value"),)}, "the first label must be binary"),
    ({"labels": (Label(name="city"),)}, r"found twice: \['city'\]"),
    ({"labels": (Label(name="ad_id"),)}, r"\['ad_id'\] are columns that `prepare`"),
    (
        {"dense": (DenseFeature(name="raw_age", side=Side.USER, source="age"),)},
        r"\['raw_age'\] are columns",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_an_ambiguous_schema_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        schema(**changes)


def test_one_sequence_may_share_the_ids_of_an_ad() -> None:
    made_of_brands = schema(sequences=(sequence("seen", "brand"),))
    names = [feature.name for feature in made_of_brands.bags_of(Side.USER)]
    assert names == ["city", "seen"]


def test_a_saved_schema_comes_back_and_another_one_has_another_fingerprint(
    tmp_path: Path,
) -> None:
    path = tmp_path / "schema.json"
    schema().save(path)
    assert Schema.load(path) == schema()
    assert Schema.load(path).fingerprint == schema().fingerprint
    turned = schema(sparse=(BRAND, CITY, CODE))
    assert turned.fingerprint != schema().fingerprint
    path.write_text("{}")
    with pytest.raises(SchemaError, match=r"schema\.json is not a readable schema"):
        Schema.load(path)


def test_every_bundled_schema_is_readable() -> None:
    paths = sorted((Path(__file__).parents[1] / "configs/schemas").glob("*.json"))
    assert paths and all(Schema.load(path).bags for path in paths)


def test_a_copy_has_the_features_that_it_was_given() -> None:
    """What was sorted out of the features of the first one is not kept."""
    numbers = [
        DenseFeature(name=name, side=Side.USER, source=name) for name in ("age", "rank")
    ]
    first = schema(dense=tuple(numbers))
    assert first.numbers_of(Side.USER) == first.dense_of(Side.USER) == tuple(numbers)
    copy = first.model_copy(update={"dense": tuple(numbers[:1])})
    assert copy.numbers_of(Side.USER) == copy.dense_of(Side.USER) == tuple(numbers[:1])
    assert first.dense_of(Side.USER) == tuple(numbers)
    assert first == schema(dense=tuple(numbers))
