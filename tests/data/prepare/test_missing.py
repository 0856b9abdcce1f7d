"""Missing values of every kind of column: counted before they become a mean."""

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
        gone = i % 20 < 20 * np.where(held_out, missing / 2, missing)
        columns[name] = [None if g else n % 9 + 1 for g, n in zip(gone, i, strict=True)]
    return pl.DataFrame(columns)


@pytest.mark.parametrize("side", ["user", "ad"])
def test_shares_are_those_of_the_raw_rows(tmp_path: Path, side: str) -> None:
    if side == "ad":
        kinds = {n: k for n, k in KINDS.items() if n != "listed"}
        allowed = {"allow_varying_ads": True, "allow_leaky_sides": True}
    else:
        kinds, allowed = KINDS, {}
    found = rows(dict.fromkeys(kinds, 0.3))
    table = {"labels": {"click": {}}, "user": {"uid": "text"}, "ad": {"item": "text"}}
    table[side] |= kinds
    report = prepare_table(tmp_path / "a", found, table, **allowed)
    for split, part in (("train", found.head(800)), ("test", found.tail(100))):
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
    found = rows(shares).with_columns(plain=pl.lit(None, dtype=pl.Int64))
    table = {
        "labels": {"click": {}},
        "user": {"uid": "text"} | KINDS,
        "ad": {"item": "text"},
    }
    prepare_table(tmp_path / "a", found, table)
    text = (tmp_path / "a/report.md").read_text()
    look, _, _ = text.partition("## Columns")
    assert "- **plain is missing in every row**" in look
    assert "- standard is mostly missing: in 60.0% of the training rows, " in look
    assert "- text is mostly missing: in 80.0% of the training rows, " in look
    assert "- listed is mostly missing: in 100.0% of the training rows, " in look
    assert "bucketed_bucket is mostly" not in look


def test_a_missing_number_is_drift_and_not_the_mean(tmp_path: Path) -> None:
    """Values in training, none in the test: written, all of these are the mean."""
    found = rows({"plain": 0}).with_columns(
        plain=pl.when(pl.int_range(pl.len()) < 900).then(pl.lit(5))
    )
    table = {
        "labels": {"click": {}},
        "user": {"uid": "text", "plain": "number"},
        "ad": {"item": "text"},
    }
    report = prepare_table(tmp_path / "a", found, table)
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
