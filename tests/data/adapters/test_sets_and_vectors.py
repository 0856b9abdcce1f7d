"""Columns of sets, vectors and prose of your own table: what is read and refused."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from raw_data import read_table

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import table
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.vectors import from_bytes, to_bytes, to_lists
from torchrec_adrec.errors import ConfigError, SchemaError


def config(path: Path, **columns: Any) -> DataConfig:
    settings = {
        "labels": {"click": {}},
        "user": {"user": "text"},
        "ad": {"item": "text"} | columns,
    }
    values = {"adapter": "table", "raw": str(path), "table": settings}
    return DataConfig.model_validate(values)


def write(path: Path, **columns: Any) -> Path:
    count = len(next(iter(columns.values())))
    rows = pl.DataFrame(
        {"click": [0, 1] * (count // 2) + [0] * (count % 2)}
        | {"user": ["u"] * count, "item": [f"i{i}" for i in range(count)]}
        | columns
    )
    if path.suffix == ".csv":
        rows.write_csv(path)
    else:
        rows.write_parquet(path)
    return path


def read(path: Path, **columns: Any) -> tuple[pl.DataFrame, BadRows]:
    bad = BadRows()
    return read_table(config(path, **columns), bad), bad


def test_a_set_has_each_id_once_in_one_order(tmp_path: Path) -> None:
    genres = {"kind": "list", "separator": "|", "max_length": 3}
    texts = ["b|a", "a| b", "a|b|a|", None, "a|b|c|d", "['a','b']"]
    rows, bad = read(write(tmp_path / "a.csv", genres=texts), genres=genres)
    assert rows["genres"].to_list() == [["a", "b"], ["a", "b"], ["a", "b"], None]
    assert bad.count == 2 and "at most 3 (`max_length`)" in bad.first[0]
    lists = pl.Series([[2, 1], [1, 1, 2], []], dtype=pl.List(pl.Int64))
    rows, _ = read(write(tmp_path / "a.parquet", genres=lists), genres=genres)
    assert rows["genres"].to_list() == [["1", "2"], ["1", "2"], None]


def test_an_ad_has_no_sequence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", seen=["a b", "b"])
    with pytest.raises(ConfigError, match=r"what an ad has several of is a set"):
        read(path, seen="sequence")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_vector_of_another_length_is_a_bad_row(suffix: str, tmp_path: Path) -> None:
    vectors: list[Any] = [None, [1.5, -2], [1.0], [1, 2, 3], [float("inf"), 1]]
    vectors += [[1e300, 0], [0.1, 0]]
    column: Any = pl.Series(vectors, dtype=pl.List(pl.Float64))
    if suffix == ".csv":
        texts = [v and ";".join(map(str, v)) for v in vectors]
        column = [*texts[:-1], "0.1; 0"]
    path = write(tmp_path / f"a{suffix}", image=column)
    rows, bad = read(path, image={"kind": "vector", "separator": ";"})
    assert rows["item"].to_list() == ["i0", "i1", "i6"] and bad.count == 4
    assert rows["image"].null_count() == 1
    components = from_bytes(rows["image"].drop_nulls(), 2)
    np.testing.assert_array_equal(
        components, np.array([[1.5, -2], [0.1, 0]], np.float32)
    )
    assert "a vector of 2 finite numbers (`size`)" in bad.first[0]


def test_words_are_no_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", image=["1 2", "1 x", "1 nan"])
    rows, bad = read(path, image="vector")
    assert len(rows) == 1 and bad.count == 2
    with pytest.raises(SchemaError, match="is Int64, expected a list of numbers"):
        read(write(tmp_path / "a.parquet", image=[1, 2]), image="vector")


def test_arrays_are_vectors_and_their_size_is_taken_from_the_data(
    tmp_path: Path,
) -> None:
    column = pl.Series([[1, 2, 3]] * 4, dtype=pl.Array(pl.Int16, 3))
    path = write(tmp_path / "a.parquet", image=column)
    (image,) = table.open_data(config(path, image="vector")).schema.vectors
    assert image.size == 3 and image.width == 4
    data = table.open_data(config(path, image={"kind": "vector", "size": 2}))
    bad = BadRows()
    assert not list(data.read(path, bad)) and bad.count == 4
    empty = write(tmp_path / "b.parquet", image=pl.Series([None] * 4))
    with pytest.raises(SchemaError, match="no row of image has a value"):
        read(empty, image="vector")


@pytest.mark.parametrize("in_side_table", [False, True])
def test_the_size_is_taken_from_files_without_a_header(
    in_side_table: bool, tmp_path: Path
) -> None:
    log, ads = tmp_path / "log.dat", tmp_path / "ads.dat"
    image = "" if in_side_table else "::1 2 3"
    log.write_text("".join(f"{i % 2}::u::i{i}{image}\n" for i in range(4)))
    ads.write_text("".join(f"i{i}::1 2 3\n" for i in range(4)))
    items = {"file": str(ads), "key": "item", "names": ["item", "image"]}
    names = ["click", "user", "item"]
    values = {
        "labels": {"click": {}},
        "user": {"user": "text"},
        "ad": {"item": "text", "image": "vector"},
        "ad_id": "item",
        "names": names if in_side_table else [*names, "image"],
    }
    values |= {"items": items} if in_side_table else {}
    settings = {"adapter": "table", "raw": str(log), "table": values}
    rows = read_table(DataConfig.model_validate(settings), BadRows())
    assert from_bytes(rows["image"], 3).tolist() == [[1, 2, 3]] * 4


def test_bytes_and_lists_are_the_same_numbers() -> None:
    lists = pl.Series("v", [None, [0.1, -0.0], None, [3e-39, 1]], dtype=pl.List(float))
    raw = to_bytes(lists, 2)
    back = to_lists(raw, 2)
    assert raw.null_count() == back.null_count() == 2
    assert to_bytes(back, 2).equals(raw)


def test_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", title=["a", "b"])
    with pytest.raises(ConfigError, match="'no-such', expected one of all-MiniLM"):
        read(path, title={"kind": "embedded_text", "encoder": "no-such"})


def test_a_vector_needs_a_size_that_is_one() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        config(Path("a.csv"), image={"kind": "vector", "size": 0})
