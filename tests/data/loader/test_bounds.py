"""A value out of range is refused with its place, or repaired and counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed_rows import SCHEMA, columns, first_step, tensors_of

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import collate
from torchrec_adrec.data.loader.parquet import StepRows
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Side, SparseFeature


@pytest.fixture
def rows(tmp_path: Path) -> StepRows:
    return first_step(columns(), tmp_path)


BAD = [
    ("z", 999, "z is 999, expected 0 to 12"),
    ("brand", -1, "brand is -1, expected 0 to 6"),
    ("brand", 7, "brand is 7, expected 0 to 6"),
    ("seen:0", 50, "seen:0 is 50, expected -1 to 49"),
    ("bought:1", -2, "bought:1 is -2, expected -1 to 8"),
    ("age", np.nan, "age is nan, expected a finite number"),
    ("price", np.inf, "price is inf, expected a finite number"),
    ("click", 3, "click is 3.0, expected 0 or 1"),
    ("click", 0.5, "click is 0.5, expected 0 or 1"),
    ("watched", 61, "watched is 61.0, expected 0 to 60"),
    ("watched", -np.inf, "watched is -inf, expected 0 to 60"),
]


def spoilt(name: str, value: float) -> dict[str, Any]:
    values = columns()
    for history in ("seen", "bought"):  # so that no gap hides what is tested
        values[f"{history}:0"][5] = values[f"{history}:1"][5] = 2
    values[name][5] = value
    return values


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_value_out_of_range_is_named_with_file_and_row(
    tmp_path: Path, name: str, value: float, message: str
) -> None:
    with pytest.raises(DataError) as error:
        collate(first_step(spoilt(name, value), tmp_path), SCHEMA)
    assert message in str(error.value)
    assert "part-00000.parquet, row group 0, row 5:" in str(error.value)


@pytest.mark.parametrize("value", [np.nan, 2.5])
def test_an_id_that_is_no_whole_number(rows: StepRows, value: float) -> None:
    values = {**rows.columns, "z": rows.columns["z"].astype(np.float64)}
    values["z"][5] = value
    with pytest.raises(DataError, match=f"row 5: z is {value}, expected 0 to 12"):
        collate(replace(rows, columns=values), SCHEMA)


@pytest.mark.parametrize("bounds", ["raise", "clamp", "unknown"])
def test_an_id_behind_the_end_of_its_sequence_is_always_refused(
    tmp_path: Path, bounds: Any
) -> None:
    values = columns()
    values["seen:0"][5], values["seen:1"][5] = -1, 4
    with pytest.raises(DataError, match=r"row 5: seen is \[-1, 4, .*no id behind"):
        collate(first_step(values, tmp_path), SCHEMA, bounds)


REPAIRED = [  # column, value, repaired by clamp, repaired by unknown
    ("z", 999, 12, 1),
    ("z", -7, 0, 1),
    ("seen:0", 50, 49, 1),
    ("age", np.nan, 0.0, 0.0),
    ("price", np.inf, "max", 0.0),
    ("price", -np.inf, "min", 0.0),
    ("click", 3, 1.0, np.nan),
    ("watched", 61, 60.0, np.nan),
    ("watched", -1, 0.0, np.nan),
]


@pytest.mark.parametrize("bounds", ["clamp", "unknown"])
@pytest.mark.parametrize(("name", "value", "clamped", "unknown"), REPAIRED)
def test_a_repaired_value_is_counted_and_logged(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    bounds: Any,
    name: str,
    value: float,
    clamped: Any,
    unknown: float,
) -> None:
    values, repaired = spoilt(name, value), RepairCounts()
    if isinstance(clamped, str):
        clamped = getattr(np.delete(values[name], 5), clamped)()
    rows = first_step(values, tmp_path)
    batches = [collate(rows, SCHEMA, bounds, repaired) for _ in range(2)]
    good = {**values, name: values[name].copy()}
    good[name][5] = clamped if bounds == "clamp" else unknown
    expected = collate(first_step(good, tmp_path), SCHEMA)
    for actual, tensor in zip(
        tensors_of(batches[1]), tensors_of(expected), strict=True
    ):
        np.testing.assert_array_equal(actual, tensor)
    assert repaired.counts == {name: 2}
    repaired.report()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and messages[1].endswith(f"repaired: {name} 2")
    assert "part-00000.parquet, row group 0, row 5: " + name in messages[0]


def test_nothing_is_said_of_good_rows(
    rows: StepRows, caplog: pytest.LogCaptureFixture
) -> None:
    repaired = RepairCounts()
    collate(rows, SCHEMA, "clamp", repaired)
    repaired.report()
    assert not repaired.counts and not caplog.records


def test_an_id_that_no_32_bits_hold_is_refused(rows: StepRows) -> None:
    """2**32 + 5 must not become 5."""
    for value in (2**32 + 5, 2**31, -(2**32) + 5):
        values = {**rows.columns, "z": rows.columns["z"].astype(np.int64)}
        values["z"][5] = value
        with pytest.raises(DataError, match=f"row 5: z is {value}, expected 0 to 12"):
            collate(replace(rows, columns=values), SCHEMA)


def test_tables_larger_than_an_id_are_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 2147483647"):
        SparseFeature(name="z", side=Side.USER, source="z", num_embeddings=2**31)
    with pytest.raises(ValueError, match="less than or equal to 2147483647"):
        DataConfig(hash_size=2**31)
