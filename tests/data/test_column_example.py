import doctest
import math
from typing import Any

import polars as pl
import pytest

from torchrec_adrec.data import column
from torchrec_adrec.data.column import Column


def test_examples_of_docstrings_give_what_they_show() -> None:
    results = doctest.testmod(column)
    assert results.attempted and not results.failed


@pytest.mark.parametrize("value", ["NL", "", 7, 0.5, -0.0, math.nan, math.inf])
@pytest.mark.parametrize("is_missing", [False, True])
def test_one_row_is_what_it_would_be_among_others(value: Any, is_missing: bool) -> None:
    """A column of a request takes another way than those of `prepare`."""
    dtype = pl.Series([value]).dtype
    one = Column.of_one(None if is_missing else value, dtype)
    two = Column.of(pl.Series("name", [None if is_missing else value] * 2, dtype=dtype))
    assert one.codes.dtype == two.codes.dtype
    assert one.codes.tolist() == two.codes.tolist()[:1] == [-1 if is_missing else 0]
    assert one.values.dtype == two.values.dtype and one.values.name == two.values.name
    assert one.values.equals(two.values, null_equal=True)
