"""Tables that can hardly be meant so are refused or named, never taken silently."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import table
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.errors import DataError, SchemaError

ROWS = 600
TABLE: dict[str, Any] = {
    "labels": {"click": {}},
    "time": {"column": "ts", "kind": "number"},
    "user": {"uid": "text", "age": "number", "seen": {"kind": "sequence"}},
    "ad": {"item": "text", "hash": "hex"},
}


def rows() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    item = rng.integers(12, size=ROWS)
    return pl.DataFrame(
        {
            "ts": np.arange(ROWS),
            "uid": [f"u{i}" for i in rng.integers(30, size=ROWS)],
            "age": rng.integers(18, 80, ROWS),
            "seen": [
                [str(i) for i in rng.integers(101, 120, n)]
                for n in rng.integers(1, 5, ROWS)
            ],
            "item": [f"i{i}" for i in item],
            "hash": [f"{i:08x}" for i in item],
            "click": rng.integers(2, size=ROWS),
        }
    )


def config_of(*paths: Path, **more: object) -> DataConfig:
    raw = [str(path) for path in paths]
    values = {"adapter": "table", "raw": raw, "min_count": 2, "table": TABLE}
    return DataConfig.model_validate(values | more)


def prepared(config: DataConfig, out: Path) -> dict[str, Any]:
    out.mkdir()
    prepare(config, table.open_data(config), out)
    return dict(json.loads((out / "report.json").read_text()))


def with_seen(folder: Path, form: Callable[[Sequence[str]], str]) -> Path:
    """Write a CSV file whose lists have some form."""
    lists = pl.col("seen").map_elements(form, return_dtype=pl.String)
    path = folder / "a.csv"
    rows().with_columns(lists).write_csv(path)
    return path


def warnings_in(out: Path) -> str:
    """The lines of the report under "Look at these"."""
    text = (out / "report.md").read_text()
    return text.partition("## Look at these")[2].partition("\n##")[0]


@pytest.mark.parametrize(
    "form",
    [
        lambda ids: str(list(ids)),
        lambda ids: f"[{' '.join(ids)}]",
        lambda ids: f"({', '.join(ids)},)",
        lambda ids: f"{{{','.join(ids)}}}",
        lambda ids: ", ".join(f"'{i}'" for i in ids),
        lambda ids: json.dumps(list(ids)),
        lambda ids: " ".join(f'"{i}"' for i in ids),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_printed_lists_are_bad_rows(
    tmp_path: Path, form: Callable[[Sequence[str]], str], ending: str
) -> None:
    path = with_seen(tmp_path, form)
    if ending == "parquet":
        pl.read_csv(path).write_parquet(tmp_path / "a.parquet")
        path = tmp_path / "a.parquet"
    with pytest.raises(DataError, match=r"600 of 600 .* seen is .* without brackets"):
        prepared(config_of(path), tmp_path / "out")


@pytest.mark.parametrize("odd", ["(x 7) '80s 5\" a[1]", "[a]b '80s (x 5\"", "(x 7) b"])
def test_brackets_and_quotes_within_ids_are_no_lists(tmp_path: Path, odd: str) -> None:
    path = tmp_path / "a.csv"
    rows().head(1).with_columns(seen=pl.lit(odd)).write_csv(path)
    bad = BadRows()
    (frame,) = table.open_data(config_of(path)).read(path, bad)
    assert bad.count == 0 and frame["seen"].to_list() == [odd.split(" ")]


@pytest.mark.parametrize("sign", [", ", ",", "|", ";", "\t"])
def test_a_likely_separator_is_named(
    tmp_path: Path, sign: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = with_seen(tmp_path, sign.join)
    with caplog.at_level(logging.WARNING):
        report = prepared(config_of(path), tmp_path / "out")
    (joined,) = report["joined_ids"]
    assert joined["name"] == "seen" and joined["sign"] == sign.rstrip(" ")
    assert joined["share"] > 0.4 and sign.strip(" ") in joined["example"]
    for text in (warnings_in(tmp_path / "out"), caplog.text):
        assert f"of its ids contain {sign.rstrip(' ')!r}, for example '1" in text
    sequence = {"kind": "sequence", "separator": sign.rstrip(" ")}
    divided = TABLE | {"user": TABLE["user"] | {"seen": sequence}}
    report = prepared(config_of(path, table=divided), tmp_path / "divided")
    # No space of `101, 102` is part of an id: 19 values, missing and unknown.
    assert report["joined_ids"] == [] and report["num_embeddings"]["seen"] == 21


def test_lists_of_one_joined_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    joined = pl.concat_list(pl.col("seen").list.join(" "))
    rows().with_columns(seen=joined).write_parquet(path)
    report = prepared(config_of(path), tmp_path / "out")
    assert [j["sign"] for j in report["joined_ids"]] == [" "]


def test_names_with_spaces_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    named = pl.col("seen").list.eval("New York " + pl.element())
    rows().with_columns(seen=named).write_parquet(path)
    assert prepared(config_of(path), tmp_path / "out")["joined_ids"] == []


@pytest.mark.parametrize("min_count", [1, 2])
def test_a_column_in_which_nothing_comes_back_is_named(
    tmp_path: Path, min_count: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.parquet"
    rows().with_columns(uid=pl.format("row {}", "ts")).write_parquet(path)
    with caplog.at_level(logging.WARNING):
        report = prepared(config_of(path, min_count=min_count), tmp_path / "out")
    assert report["hardly_recurring"] == {"uid": 1.0}
    line = "learned from (data.min_count): uid (100% of the rows)"
    assert line in warnings_in(tmp_path / "out") and line in caplog.text


def test_a_column_that_the_test_does_not_know_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    late = (pl.col("ts") >= 540) & (pl.col("ts") % 4 > 0)
    new = pl.when(late).then(pl.lit("new")).otherwise("uid")
    rows().with_columns(uid=new).write_parquet(path)
    prepared(config_of(path), tmp_path / "out")
    line = "test rows mostly never occurred in training: uid (75% of the rows)"
    assert line in warnings_in(tmp_path / "out")


def test_new_items_of_a_history_are_unknown_in_the_test_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    is_late = pl.col("ts") >= 540
    history = pl.when(is_late).then(pl.lit(["new"])).otherwise("seen")
    rows().with_columns(seen=history).write_parquet(path)
    splits = prepared(config_of(path), tmp_path / "out")["splits"]
    shares = [splits[name]["unknown"]["seen"] for name in ("train", "valid", "test")]
    assert shares == [0, 0, 1]


def test_the_catalog_writes_hashes_as_the_raw_file_does(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows().write_parquet(path)
    prepared(config_of(path), tmp_path / "out")
    catalog = pl.read_parquet(tmp_path / "out/catalog.parquet")
    assert set(catalog["raw_hash"]) == set(rows()["hash"])


@pytest.mark.parametrize("name", ["uid", "age", "seen", "item", "hash"])
def test_a_column_that_is_null_in_one_file_is_missing_there(
    tmp_path: Path, name: str
) -> None:
    """pandas and pyarrow give a column without values no type, or lists of none."""
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    rows().head(300).write_parquet(paths[0])
    empty = [pl.lit(None)] + ([pl.lit([], pl.List(pl.Null))] if name == "seen" else [])
    for number, value in enumerate(empty):
        rows().tail(300).with_columns(value.alias(name)).write_parquet(paths[1])
        report = prepared(config_of(*paths), tmp_path / f"out {number}")
        assert report["bad_rows"]["count"] == 0
        if name != "age":
            assert report["splits"]["test"]["missing"][name] == 1
            assert 0 < report["splits"]["train"]["missing"][name] < 1


@pytest.mark.parametrize("name", ["click", "ts"])
def test_what_every_row_needs_may_not_be_null(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    rows().with_columns(pl.lit(None).alias(name)).write_parquet(path)
    with pytest.raises(DataError, match=f"600 of 600 rows .* {name} is missing"):
        prepared(config_of(path), tmp_path / "out")


CLICK, TS = pl.col("click"), pl.col("ts")


@pytest.mark.parametrize(
    ("click", "reason"),
    [
        (pl.when(TS < 540).then(CLICK).otherwise(0), "no test row has click = 1 .60"),
        (
            pl.when(TS < 540).then(0).otherwise(CLICK),
            "test rows have others: choose other",
        ),
        (pl.lit(0), "click = 0 .480 observed.*; look at the label's column"),
        (pl.lit(1), "add the rows that were shown without success, with click = 0"),
    ],
)
def test_splits_without_clicks_are_refused(
    tmp_path: Path, click: pl.Expr, reason: str
) -> None:
    path = tmp_path / "a.parquet"
    rows().with_columns(click.alias("click")).write_parquet(path)
    with pytest.raises(DataError, match=reason):
        prepared(config_of(path), tmp_path / "out")


@pytest.mark.parametrize("value", [0, 1])
def test_a_valid_split_of_one_label_is_named(tmp_path: Path, value: int) -> None:
    path = tmp_path / "a.parquet"
    click = pl.when(TS.is_between(480, 539)).then(value).otherwise(CLICK)
    rows().with_columns(click=click).write_parquet(path)
    prepared(config_of(path), tmp_path / "out")
    line = f"every valid row has click = {value} (60 observed)"
    assert line in warnings_in(tmp_path / "out")


def test_the_settings_that_mend_leaky_sides_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows().with_columns(uid=pl.format("fan of {}", "item")).write_parquet(path)
    with pytest.raises(DataError, match=r"side \(data\.table\.user, data\.table\.ad\)"):
        prepared(config_of(path), tmp_path / "out")


@pytest.mark.parametrize(
    ("ending", "change", "reason"),
    [
        ("csv", (",", ";"), "seem to be divided by semicolons: polars.read_csv"),
        ("csv", (",", "|"), "seem to be divided by bars"),
        ("csv", (",", "\t"), "seem to be divided by tabs: name the file .tsv"),
        ("tsv", (",", ","), "seem to be divided by commas: name the file .csv"),
    ],
)
def test_another_separator_is_named(
    tmp_path: Path, ending: str, change: tuple[str, str], reason: str
) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text(",".join(rows().columns).replace(*change) + "\n")
    with pytest.raises(SchemaError, match=reason):
        table.open_data(config_of(path))


@pytest.mark.parametrize(
    ("encoding", "end", "reason"),
    [
        ("utf-16", "\n", "most likely UTF-16LE; .* iconv -f UTF-16LE -t UTF-8"),
        ("utf-16-le", "\n", "most likely UTF-16LE"),
        ("utf-16-be", "\n", "most likely UTF-16BE"),
        ("utf-8", "\r", r"line ends of old Macs, CR alone; .* tr '\\r' '\\n'"),
        ("latin-1", "\n", "no UTF-8, most likely Latin-1"),
    ],
)
def test_another_encoding_is_named(
    tmp_path: Path, encoding: str, end: str, reason: str
) -> None:
    lines = ["ts,uid,\xe5lder" if encoding == "latin-1" else "ts,uid,age", "1,u,3"]
    path = tmp_path / "a.csv"
    path.write_bytes((end.join(lines) + end).encode(encoding))
    with pytest.raises(DataError, match=rf"a\.csv:1: .*{reason}"):
        table.open_data(config_of(path))
