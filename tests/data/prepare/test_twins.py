"""`7` and `7.0` in one column of ids are refused and both named, in any file."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from raw_data import prepare_table

from torchrec_adrec.errors import DataError

ROWS = 300
TABLE: dict[str, Any] = {
    "labels": {"click": {}},
    "user_id": "uid",
    "user": {"country": "text", "seen": {"kind": "sequence"}},
    "ad": {"item": "text"},
}


def rows(**change: dict[int, str]) -> pl.DataFrame:
    """Rows of whole ids, except for some values by row."""
    columns = {
        "uid": [str(i % 50) for i in range(ROWS)],
        "country": [str(i % 4) for i in range(ROWS)],
        "seen": [f"{i % 9} {i % 8}" for i in range(ROWS)],
        "item": [str(i % 20) for i in range(ROWS)],
        "click": [str(i // 20 % 2) for i in range(ROWS)],
    }
    for name, values in change.items():
        for i, value in values.items():
            columns[name][i] = value
    return pl.DataFrame(columns)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"item": {70: "7.0"}}, r"item: '7' \({f}, good row 8\) and '7\.0' .*row 71\)"),
        ({"item": {299: "7."}}, r"item: '7' .* and '7\.' .*row 300\)"),
        ({"country": {9: "+3.0"}}, r"country: '\+3\.0' .*row 10\) and '3' "),
        ({"seen": {30: "1 12 5.0"}}, r"seen: '5' .*row 6\) and '5\.0' .*row 31\)"),
        ({"uid": {0: "4.00"}}, r"user: '4' .*row 5\) and '4\.00' .*row 1\)"),
        (
            {"item": {1: "7.0", 3: "7.00", 7: "x"}},
            r"item: '7' .*and '7\.0' .*and '7\.00'",
        ),
    ],
)
def test_both_forms_are_named(
    tmp_path: Path, change: dict[str, dict[int, str]], named: str
) -> None:
    expected = named.replace("{f}", str(tmp_path / "a.csv"))
    with pytest.raises(DataError, match=f"written as two ids: {expected}"):
        prepare_table(tmp_path / "a", rows(**change), TABLE)


def test_a_shared_history_is_one_column_with_the_ads(tmp_path: Path) -> None:
    histories = dict.fromkeys(range(ROWS), "7.0 8.0")
    prepare_table(tmp_path / "a", rows(seen=histories), TABLE)
    sequence = {"kind": "sequence", "shares_ids_with": "item"}
    table = TABLE | {"user": TABLE["user"] | {"seen": sequence}}
    with pytest.raises(DataError, match=r"item: '7' .*row 8\) and '7\.0' .*row 1\)"):
        prepare_table(tmp_path / "b", rows(seen=histories), table)


def test_two_files_are_one_column(tmp_path: Path) -> None:
    """As pandas writes them: one file with a gap in the column, one without."""
    rows().head(150).write_csv(tmp_path / "a.csv")
    pointed = rows().tail(150).with_columns(item=pl.col("item") + ".0")
    pointed.write_parquet(tmp_path / "b.parquet")
    raw = [str(tmp_path / name) for name in ("a.csv", "b.parquet")]
    named = r"'0' \(.*a\.csv, good row 1\) and '0\.0' \(.*b\.parquet, good row 11\)"
    with pytest.raises(DataError, match=rf"{named}.*20 numbers"):
        prepare_table(tmp_path / "c", rows(), TABLE, raw=raw)


def test_one_form_alone_may_be_meant(tmp_path: Path) -> None:
    versions = {i: f"{i % 4}.0" for i in range(ROWS)}
    likely = {5: "07", 6: "7.05", 7: "7-0", 8: "1.7.0"}  # other ids than 7
    prepare_table(tmp_path / "a", rows(country=versions, item=likely), TABLE)
