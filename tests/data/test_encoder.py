import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_adrec.data.numeric import Standardize, bucket
from torchrec_adrec.data.vocabulary import Vocabulary


def counts(values: dict[int | None, int]) -> pl.DataFrame:
    return pl.DataFrame(
        {"value": list(values), "count": list(values.values())},
        schema={"value": pl.Int64, "count": pl.UInt32},
    )


def encode(vocabulary: Vocabulary, values: list[int | None]) -> list[int]:
    missing = np.array([v is None for v in values])
    raw = np.array([v or 0 for v in values], dtype=np.int64)
    return vocabulary.encode(raw, missing).tolist()


def test_ids_follow_falling_frequency() -> None:
    fitted = Vocabulary.fit(counts({30: 5, 10: 9, 20: 5, 40: 1, None: 99}), min_count=2)
    # missing 0, unknown 1, then 10 (9 times), then 20 and 30 (5 each, by value)
    assert encode(fitted, [None, 40, 77, 10, 20, 30]) == [0, 1, 1, 2, 3, 4]
    assert fitted.num_embeddings == 5
    assert encode(Vocabulary.from_frame(fitted.to_frame()), [20]) == [3]


def test_a_vocabulary_of_nothing() -> None:
    fitted = Vocabulary.fit(counts({None: 3}), min_count=1)
    assert encode(fitted, [None, 5]) == [0, 1]


@given(st.lists(st.integers(-3, 2**40) | st.none(), min_size=1))
def test_numbers_are_always_finite(values: list[int | None]) -> None:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=pl.Int64)})
    fitted = Standardize.fit("x", frame.lazy())
    assert np.isfinite(frame.select(fitted.expression())["x"].to_numpy()).all()


def test_negative_numbers_are_told_apart() -> None:
    frame = pl.DataFrame({"I2": [-2, -1, 0, 1, None]})
    fitted = Standardize.fit("I2", frame.lazy())
    z = frame.select(fitted.expression())["I2"].to_list()
    assert sorted(z[:4]) == z[:4] and len(set(z[:4])) == 4
    assert z[4] == 0.0


@pytest.mark.parametrize(
    ("value", "expected"), [(-2, -2), (0, 0), (2, 2), (3, 1), (100, 21), (None, None)]
)
def test_buckets(value: int | None, expected: int | None) -> None:
    frame = pl.DataFrame({"x": pl.Series([value], dtype=pl.Int64)})
    assert frame.select(bucket(pl.col("x")))["x"].to_list() == [expected]
