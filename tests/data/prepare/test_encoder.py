"""The encoder: values become ids and numbers, fitted on counts."""

import doctest
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_adrec.data.column import Chunk, Column, JaggedColumn
from torchrec_adrec.data.prepare import encoder
from torchrec_adrec.data.prepare.numeric import Quantiles, Transform, log_square
from torchrec_adrec.data.prepare.vocabulary import MISSING, Frequent, Hashed
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import DenseFeature, Side, SparseFeature

NUMBER = DenseFeature(name="x", side=Side.USER, source="x")
BUCKETS = SparseFeature(
    name="x_bucket", side=Side.USER, source="x", kind="number", buckets="quantile"
)


def fit(values: dict[int, int], min_count: int) -> Frequent:
    keys, counts = (np.array(list(x)) for x in (values, values.values()))
    return Frequent.fit(keys.astype(np.int64), counts.astype(np.int64), min_count)


def test_the_example_of_the_encoder_prints_what_it_says() -> None:
    failed, attempted = doctest.testmod(encoder)
    assert failed == 0 and attempted > 0


def test_ids_follow_falling_frequency() -> None:
    fitted = fit({30: 5, 10: 9, 20: 5, 40: 1}, min_count=2)
    # unknown 1, then 10 (9 times), then 20 and 30 (5 each, by value)
    assert fitted.encode(np.array([40, 77, 10, 20, 30])).tolist() == [1, 1, 2, 3, 4]
    assert fitted.num_embeddings == 5
    again = Frequent.from_frame(fitted.to_frame())
    assert again.encode(np.array([20])).tolist() == [3]


def test_a_vocabulary_of_nothing() -> None:
    assert fit({}, min_count=1).encode(np.array([5])).tolist() == [1]


def test_a_missing_value_is_id_0() -> None:
    column = Column.of(pl.Series(["b", None, "a", "b"]))
    assert column.spread(np.array([7, 8]), MISSING).tolist() == [7, 0, 8, 7]
    assert column.count().tolist() == [2, 1]


@pytest.mark.parametrize("values", [1, 127, 128, 129, 32_768, 40_000])
def test_a_chunk_comes_back_as_it_was_written(tmp_path: Path, values: int) -> None:
    """Codes are as small as they can be; none may wrap round."""
    column = Column.of(pl.Series([None, *range(values), 0]))
    chunk = Chunk({"x": column}, {"click": np.zeros(values + 2, np.float32)}, None)
    chunk.save(tmp_path / "a.arrow")
    again = Chunk.load(tmp_path / "a.arrow").columns["x"]
    assert isinstance(again, Column)
    assert again.codes.tolist() == column.codes.tolist()
    assert again.values.to_list() == column.values.to_list()
    assert again.count().tolist() == [2] + [1] * (values - 1)


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=50, unique=True))
def test_hashed_ids_stay_inside_and_depend_on_the_feature(values: list[int]) -> None:
    keys = np.array(values, dtype=np.int64)
    one, two = Hashed("a", 1000), Hashed("b", 1000)
    assert ((one.encode(keys) >= 2) & (one.encode(keys) < 1000)).all()
    assert (one.encode(keys) == Hashed("a", 1000).encode(keys)).all()
    if len(keys) > 3:
        assert (one.encode(keys) != two.encode(keys)).any()


def test_hashed_ids_are_spread_evenly() -> None:
    ids = Hashed("a", 102).encode(np.arange(100_000, dtype=np.int64))
    rows = np.bincount(ids, minlength=102)[2:]
    assert rows.min() > 800 and rows.max() < 1200  # 1000 each, sd 32


@given(st.lists(st.integers(-3, 2**40), min_size=1, unique=True))
def test_numbers_are_always_finite(values: list[int]) -> None:
    raw, counts = np.array(values, dtype=float), np.ones(len(values), dtype=np.int64)
    for kind in ("log_standard", "standard", "log"):
        feature = NUMBER.model_copy(update={"transform": kind})
        assert np.isfinite(Transform.fit(feature, raw, counts).apply(raw)).all()


def test_a_fit_weighs_values_by_their_rows() -> None:
    """Fails when distinct values are fitted instead of rows."""
    feature = NUMBER.model_copy(update={"transform": "standard"})
    fitted = Transform.fit(feature, np.array([0.0, 10.0]), np.array([9, 1]))
    rows = np.array([0.0] * 9 + [10.0])
    assert fitted.mean == pytest.approx(rows.mean())
    assert fitted.std == pytest.approx(rows.std(ddof=1))


@given(value=st.floats(-1e6, 1e6), rows=st.integers(2, 10**6))
def test_a_constant_column_is_not_blown_up(value: float, rows: int) -> None:
    for kind in ("log_standard", "standard"):
        feature = NUMBER.model_copy(update={"transform": kind})
        values, counts = np.array([value, value + 50]), np.array([rows, 0])
        fitted = Transform.fit(feature, values, counts)
        assert abs(fitted.apply(values)).max() <= 51


def test_a_fit_that_is_not_finite_is_refused() -> None:
    feature = NUMBER.model_copy(update={"transform": "standard"})
    with pytest.raises(DataError, match=r"x goes up to 1e\+200"):
        Transform.fit(feature, np.array([0.0, 1e200]), np.array([1, 1]))


def test_negative_numbers_stay_distinct() -> None:
    raw = np.array([-2.0, -1, 0, 1])
    z = Transform.fit(NUMBER, raw, np.ones(4, dtype=np.int64)).apply(raw)
    assert sorted(z) == z.tolist() and len(set(z)) == 4


@pytest.mark.parametrize(
    ("value", "bucket"), [(-2, -2), (0, 0), (0.5, 0), (2, 2), (3, 3), (4, 3), (100, 23)]
)
def test_log_square(value: float, bucket: int) -> None:
    assert log_square(np.array([float(value)])).tolist() == [bucket]


def test_quantiles_hold_equally_many_rows() -> None:
    raw = np.random.default_rng(0).exponential(size=6400)
    fitted = Quantiles.fit(BUCKETS.name, raw, np.ones(6400, dtype=np.int64))
    rows = np.bincount(fitted.bucket(raw))
    assert len(rows) == 64 and abs(rows - 100).max() <= 1
    skewed = Quantiles.fit(BUCKETS.name, np.array([0.0, 1.0]), np.array([999, 1]))
    assert skewed.bucket(np.array([0.0, 1.0])).tolist() == [0, 1]


Lists = st.lists(st.lists(st.sampled_from("abc"), max_size=5), min_size=1, max_size=8)


@given(rows=Lists, length=st.integers(1, 6))
def test_a_history_keeps_its_last_items(rows: list[list[str]], length: int) -> None:
    bags = JaggedColumn.of(pl.Series(rows, dtype=pl.List(pl.String)))
    numbers = np.array([ord(x) for x in bags.items.values], dtype=np.int32)
    actual = bags.last(bags.items.spread(numbers, 0), length, -1)
    for row, ids in zip(rows, actual, strict=True):
        kept = [ord(x) for x in row[-length:]]
        assert ids.tolist() == kept + [-1] * (length - len(kept))
    chosen = np.arange(len(rows)) % 2 == 0
    half = bags.rows(chosen)
    again = half.last(half.items.spread(numbers, 0), length, -1)
    assert (again == actual[chosen]).all()
    assert bags.count(chosen).sum() == sum(map(len, rows[::2]))
