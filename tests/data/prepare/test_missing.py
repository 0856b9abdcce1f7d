"""Missing values of every kind of column are counted before they become a mean."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import prepare_criteo
from raw_data import prepare_table

ROWS = 1000
KINDS: dict[str, Any] = {
    "plain": "number",
    "standard": {"kind": "number", "transform": "standard"},
    "bucketed": {"kind": "number", "buckets": "quantile"},
    "text": "text",
    "listed": {"kind": "sequence"},
}


def rows(share: dict[str, float]) -> pl.DataFrame:
    """A share of each column is missing, of the held-out rows exactly half as much."""
    i = np.arange(ROWS)
    columns: dict[str, Any] = {"uid": i % 50, "item": i % 40, "click": i * 7 // 3 % 2}
    for name, missing in share.items():
        held_out = i >= 800
        is_null = i % 20 < 20 * np.where(held_out, missing / 2, missing)
        columns[name] = [
            None if null else n % 9 + 1 for null, n in zip(is_null, i, strict=True)
        ]
    return pl.DataFrame(columns)


@pytest.mark.parametrize("side", ["user", "ad"])
def test_shares_are_those_of_the_raw_rows(tmp_path: Path, side: str) -> None:
    if side == "ad":
        kinds = {n: k for n, k in KINDS.items() if n != "listed"}
        allowed = {"allow_varying_ads": True, "allow_leaky_sides": True}
    else:
        kinds, allowed = KINDS, {}
    table_rows = rows(dict.fromkeys(kinds, 0.3))
    table: dict[str, dict[str, Any]]
    table = {"labels": {"click": {}}, "user": {"uid": "text"}, "ad": {"item": "text"}}
    table[side] |= kinds
    report = prepare_table(tmp_path / "a", table_rows, table, **allowed)
    for split, part in (
        ("train", table_rows.head(800)),
        ("test", table_rows.tail(100)),
    ):
        missing = report["splits"][split]["missing"]
        for name in kinds:
            expected = part[name].null_count() / len(part)
            feature = "bucketed_bucket" if name == "bucketed" else name
            assert missing[feature] == pytest.approx(expected), (split, name)
    line = "| plain | 0 | 0.3000 / 0.1500 | 0.0000 / 0.0000 |"
    text = (tmp_path / "a/report.md").read_text()
    assert line in text and "is mostly missing" not in text


def test_columns_without_values_are_named(tmp_path: Path) -> None:
    shares = {"plain": 1.0, "standard": 0.6, "bucketed": 0.4, "text": 0.8, "listed": 1}
    table_rows = rows(shares).with_columns(plain=pl.lit(None, dtype=pl.Int64))
    table = {
        "labels": {"click": {}},
        "user": {"uid": "text"} | KINDS,
        "ad": {"item": "text"},
    }
    prepare_table(tmp_path / "a", table_rows, table)
    text = (tmp_path / "a/report.md").read_text()
    warnings, _, _ = text.partition("## Columns")
    assert "- **plain is missing in every row**" in warnings
    assert "- standard is mostly missing: in 60.0% of the training rows and" in warnings
    assert "- text is mostly missing: in 80.0% of the training rows and" in warnings
    assert "- listed is mostly missing: in 100.0% of the training rows and" in warnings
    assert "bucketed_bucket is mostly" not in warnings


def test_a_missing_number_is_drift_and_not_the_mean(tmp_path: Path) -> None:
    """The test rows have no value, and once encoded a missing value is the mean."""
    table_rows = rows({"plain": 0}).with_columns(
        plain=pl.when(pl.int_range(pl.len()) < 900).then(pl.lit(5))
    )
    table = {
        "labels": {"click": {}},
        "user": {"uid": "text", "plain": "number"},
        "ad": {"item": "text"},
    }
    report = prepare_table(tmp_path / "a", table_rows, table)
    assert report["drift"]["plain"] > 5
    assert report["splits"]["test"]["missing"]["plain"] == 1


def test_criteo_numbers_without_buckets(raw_file: Path, tmp_path: Path) -> None:
    lines = [line.split("\t") for line in raw_file.read_text().splitlines()]
    for fields in lines[::4]:
        fields[1] = ""
    raw_file.write_text("\n".join("\t".join(fields) for fields in lines))
    numbers = {"buckets": None}
    report = prepare_criteo(tmp_path / "out", raw_file, numbers=numbers)
    assert report["splits"]["train"]["missing"]["I1"] == 0.25
    assert report["splits"]["train"]["missing"]["I2"] == 0
