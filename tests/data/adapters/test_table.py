"""Your own table: values, types, refusals, and the example of the documentation."""

import gzip
import re
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_data import MAPPING, click, table_config
from raw_data import read_table as read

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.adapters import delimited, table
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import ConfigError, DataError, SchemaError
from torchrec_adrec.schema import Side

DOC = (REPOSITORY / "docs/own_data.md").read_text()
NAMES = "clicked,revenue,ts,uid,country,age,seen,ad_id,price"
GOOD = "1,5,1,u,NL,3,a b,x,2"


def block(language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)```", DOC, re.DOTALL)
    assert match
    return match[1]


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    shipped = REPOSITORY / "configs/table_example.yaml"
    assert block("yaml") in shipped.read_text()
    path = tmp_path / "2024-05.csv"
    path.write_text(block("csv"))
    config, bad = load_config(shipped, [f"data.raw={tmp_path}/*.csv"]).data, BadRows()
    rows = read(config, bad)
    assert len(rows) == 5 and bad.count == 0
    assert rows["value"].to_list() == [pytest.approx(59.9), None, None, 100, None]
    assert rows["history"].to_list()[2:] == [["a2", "a1"], None, ["a2", "a1", "a1"]]
    assert rows["campaign"][3] == "books, used" and rows["age"].null_count() == 2
    assert rows[table.TIME][1] - rows[table.TIME][0] == 5_000


def test_csv_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    rows = pl.DataFrame([click(i) for i in range(80)])
    rows.write_parquet(tmp_path / "a.parquet")
    flat = rows.with_columns(pl.col("seen").list.join(" "))
    flat.write_csv(tmp_path / "a.csv")
    (tmp_path / "a.tsv.gz").write_bytes(
        gzip.compress(flat.write_csv(separator="\t", line_terminator="\r\n").encode())
    )
    endings = ("parquet", "csv", "tsv.gz")
    frames = [read(table_config(tmp_path / f"a.{e}"), BadRows()) for e in endings]
    assert frames[0].equals(frames[1]) and frames[0].equals(frames[2])
    assert frames[0]["history"].to_list()[5] == ["a2", "a3", "a4"]
    assert frames[0]["value"].max() == 100


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,2,3", "3 fields, expected 9"),
        (GOOD + ",more", "10 fields, expected 9"),
        ("", "clicked is '', expected 0 or 1"),
        (GOOD.replace("1,5", "0.5,5"), "clicked is '0.5', expected 0 or 1"),
        (GOOD.replace("1,5", "true,5"), "clicked is 'true', expected 0 or 1"),
        (GOOD.replace("1,5", "1,-5"), "revenue is '-5', expected a number from 0"),
        (GOOD.replace("1,5", "1,inf"), "revenue is 'inf'"),
        (GOOD.replace("1,u", "noon,u"), "ts is 'noon', expected an integer"),
        (GOOD.replace(",u,", ",,"), "uid is '', expected an id"),
        (GOOD.replace(",3,", ",x,"), "age is 'x', expected a finite number"),
        (GOOD.replace(",3,", ",nan,"), "age is 'nan'"),
        (GOOD.replace("NL", '"NL'), "{fields}"),
        (GOOD.replace("x,2", 'x,"2'), "a quoted field does not close"),
        (GOOD.replace("NL", "\xe9"), "a quoted field does not close"),
        (GOOD.replace("NL", "N\rL"), "a quoted field does not close"),
    ],
)
@pytest.mark.parametrize("index", [0, 7, 19])
def test_a_bad_line_is_named(
    tmp_path: Path, line: str, reason: str, index: int
) -> None:
    lines = [GOOD] * 20
    lines[index] = line
    path = tmp_path / "a.csv"
    path.write_bytes("\n".join([NAMES, *lines, ""]).encode("latin-1"))
    bad = BadRows()
    assert len(read(table_config(path), bad)) == 19 and bad.count == 1
    reason = reason.replace("{fields}", "5 fields, expected 9")
    assert bad.first[0].startswith(f"{path}:{index + 2}: {reason}")


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(
        st.one_of(st.just(GOOD), st.text('1,"a\xff\r\0', max_size=12)), min_size=1
    ),
    chunk=st.integers(20, 400),
    threshold=st.integers(1, 9),
)
def test_every_line_is_a_row_or_a_bad_row(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    chunk: int,
    threshold: int,
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    path.write_bytes("\n".join([NAMES, *lines, ""]).encode("latin-1"))
    results = []
    for size, lone in (
        (chunk, threshold),
        (1 << 20, threshold),
        (1 << 20, delimited.FEW),
    ):
        bad = BadRows()
        with mock.patch.object(delimited, "FEW", lone):
            rows = list(delimited.batches(path, NAMES.split(","), size, bad))
        numbers = [int(n) for part in rows for n in part.numbers]
        assert len(numbers) + bad.count == len(lines)
        results.append((numbers, bad.first, pl.concat(p.frame for p in rows)))
    for numbers, first, frame in results[1:]:
        assert (numbers, first) == results[0][:2] and frame.equals(results[0][2])
    assert [i + 2 for i, line in enumerate(lines) if line == GOOD] == [
        number for number in results[0][0] if lines[number - 2] == GOOD
    ]


def test_sides_and_buckets() -> None:
    values = table_config(Path("a.csv")).table
    assert values
    schema = table.schema(values)
    assert schema.sources_of(Side.AD) == ("price", "creative")
    assert schema.columns_of(Side.USER)[:4] == ("age", "uid", "country", "age_bucket")
    assert [f.name for f in schema.sequences_of(Side.USER)] == ["history"]
    assert schema.label_names == ("click", "value")


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-02", 86_400_000),
        ("1970-01-01T00:00:01", 1_000),
        ("1970-01-01 00:00:01.25", 1_250),
        ("1970-01-01T00:00:01Z", 1_000),
        ("1970-01-01T02:00:01+02:00", 1_000),
    ],
)
def test_iso_times(tmp_path: Path, text: str, milliseconds: int) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{NAMES}\n{GOOD.replace('1,u', text + ',u')}\n")
    rows = read(table_config(path, time="ts"), BadRows())
    assert rows[table.TIME].to_list() == [milliseconds]


def test_types_of_parquet(tmp_path: Path) -> None:
    row = click(8) | {
        "clicked": True,
        "price": float("nan"),
        "ts": datetime(1970, 1, 2),
        "seen": [3, None, 4],
    }
    pl.DataFrame([row]).write_parquet(tmp_path / "a.parquet")
    config = table_config(tmp_path / "a.parquet", time="ts")
    values = read(config, BadRows()).row(0, named=True)
    assert values["click"] == 1 and values["price"] is None
    assert values[table.TIME] == 86_400_000 and values["history"] == ["3", "4"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"uid": 7.0}, "uid is Float64, expected text or integers"),
        ({"age": [1]}, "age is List.*expected numbers"),
        ({"seen": 3}, "seen is Int64, expected a list"),
        ({"ts": "noon"}, "ts"),
        ({"loose": 1}, r"columns \['loose'\] are not used"),
    ],
)
def test_a_column_of_another_type_is_refused(
    tmp_path: Path, values: dict[str, Any], reason: str
) -> None:
    pl.DataFrame([click(1) | values]).write_parquet(tmp_path / "a.parquet")
    if values == {"ts": "noon"}:
        pl.DataFrame([click(1) | {"ts": 1.5}]).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=reason):
        table.open_data(table_config(tmp_path / "a.parquet"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(NAMES.replace("country", "land") + "\n")
    with pytest.raises(SchemaError, match=r"a\.csv: no column country; found clicked,"):
        table.open_data(table_config(path))


def test_other_texts_may_mean_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{NAMES}\n{GOOD.replace('NL,3', 'NULL,NULL')}\n")
    rows = read(table_config(path, missing=["", "NULL"]), BadRows())
    assert rows.select("country", "age").row(0) == (None, None)


def test_files_of_a_pattern_are_sorted_and_none_counts_twice(tmp_path: Path) -> None:
    for name in "cab":
        (tmp_path / f"{name}.csv").write_text(f"{NAMES}\n{GOOD}\n")
    raw = (f"{tmp_path}/*.csv",)
    config = table_config(tmp_path).model_copy(update={"raw": raw})
    assert [path.stem for path in table.open_data(config).files] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"b\.csv named twice"):
        repeated = (*raw, f"{tmp_path}/b.csv")
        table.open_data(config.model_copy(update={"raw": repeated}))
    with pytest.raises(ConfigError, match=r"no such file: .*\*\.json"):
        table.open_data(config.model_copy(update={"raw": (f"{tmp_path}/*.json",)}))


@pytest.mark.parametrize(
    ("text", "error"),
    [("", DataError), ("a,a\n", SchemaError), ("\xff,b\n", DataError)],
)
def test_a_header_that_cannot_be_used(
    tmp_path: Path, text: str, error: type[Exception]
) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="latin-1")
    with pytest.raises(error, match=r"a\.csv:1: "):
        table.open_data(table_config(tmp_path / "a.csv"))


def test_a_cut_gzip_is_an_error(tmp_path: Path) -> None:
    lines = [f"{GOOD}{i * 7919 % 1000}" for i in range(5_000)]
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress("\n".join([NAMES, *lines]).encode(), 1)[:-2000])
    with pytest.raises(DataError, match=r"a\.csv\.gz:\d+: the gzip stream is damaged"):
        read(table_config(path), BadRows())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("user={uid: txt}", "user.uid: expected a kind: text, hex, number, sequence"),
        ("user={new: {column: x}}", "user.new: expected a kind: text, hex"),
        ("user={uid: 3}", "user.uid: expected a kind: text, hex"),
        ("user=text", "user: expected names with settings"),
        (
            "labels={click: clicked}",
            r"keys .column, .*at_least, positives_only, .*, as \{column: clicked\}",
        ),
        ("time=3", "time: expected a block of keys .column, kind., found 3"),
        ("user={uid: {kind: number, bucket: quantile}}", "number.buckets'"),
        ("labels={click: {columns: x}}", "mean 'data.table.labels.click.column'"),
        ("lables={}", "did you mean 'data.table.labels'"),
        ("ad={ad_id: text}", "name the feature otherwise"),
        ("user={late: {column: revenue, kind: number}}", "are labels: known only"),
        ("labels={click: {max_value: 3}}", "a binary label has none"),
        ("user={'a/b': text}", "should match pattern"),
    ],
)
def test_a_mapping_that_cannot_be_used(change: str, reason: str) -> None:
    config = REPOSITORY / "configs/table_example.yaml"
    with pytest.raises(ConfigError, match=reason):
        load_config(config, [f"data.table.{change}"])


@pytest.mark.parametrize(
    "change",
    [
        {"ad": {"uid": "text"}},  # twice
        {"labels": {"value": {"column": "revenue", "kind": "value", "max_value": 9}}},
    ],
)
def test_a_mapping_that_makes_no_schema(change: dict[str, Any]) -> None:
    values = table_config(Path("a.csv"), **change).table
    assert values and MAPPING
    with pytest.raises(ConfigError, match=r"data\.table: "):
        table.schema(values)


def test_a_saved_mapping_is_read_back_the_same(tmp_path: Path) -> None:
    config = load_config(REPOSITORY / "configs/table_example.yaml")
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
