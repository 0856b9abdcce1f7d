"""The types of a request let through exactly what the encoder can read, in bounds."""

import re
from typing import Any

import pytest
from fake_run import SCHEMA, USER
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.errors import DataError
from torchrec_adrec.serve.http.schema_model import Bodies

BODIES = Bodies(SCHEMA, ServeConfig(text_length=20, list_length=3), 3, [USER])
TEXTS = st.sampled_from(["", "12", " 12", "1.5e3", ".", "1e5", "abcdef01", "ABCDEF0"])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(-1e18, 1e18) | st.sampled_from([float("nan"), float("inf")]),
    TEXTS | st.text("0123456789abcdefgE+-. \n", max_size=9),
    st.lists(TEXTS | st.integers(), max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(column=st.sampled_from(sorted(USER)), value=VALUES)
@example(column="age", value="0E00")
@example(column="age", value="1e-05")
@example(column="age", value="1E+19")
def test_it_accepts_what_the_encoder_reads(column: str, value: Any) -> None:
    # The encoder would read 1e20 in a text, which no transform of a number expects.
    assume(not re.search("[eE][+]?0*([2-9][0-9]|[0-9]{3})", str(value)))
    try:
        raw_user({column: value}, SCHEMA)
        is_read = True
    except DataError:
        is_read = False
    try:
        body: Any = BODIES.recommend.model_validate({"user": {column: value}})
        assert value == body.user[column] or float(value) == body.user[column]
        is_accepted = True
    except ValidationError:
        is_accepted = False
    assert is_accepted == is_read


@pytest.mark.parametrize(
    "user",
    [{"city": "x" * 21}, {"seen_brands": ["x"] * 4}, {"seen_brands": ["x" * 21]}],
)
def test_texts_and_lists_are_bounded(user: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BODIES.recommend.model_validate({"user": user})


def test_thousands_of_faults_are_one() -> None:
    """Listing each of them would take longer than a right answer."""
    for user in ({str(i): i for i in range(5_000)}, {"seen_brands": list(range(3))}):
        with pytest.raises(ValidationError) as raised:
            BODIES.recommend.model_validate({"user": user})
        assert raised.value.error_count() == 1
