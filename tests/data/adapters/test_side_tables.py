"""Side tables and labels of columns: what is joined, counted, named and refused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from raw_data import read_table as read
from thread_ranks import assert_same_files, prepare_on

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import files_read, table
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.dataset import check_rows
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.errors import ConfigError, DataError, SchemaError

ROWS = 600
TABLE: dict[str, Any] = {
    "labels": {
        "click": {"from": "stars", "at_least": 4},
        "stars": {"kind": "value", "max_value": 5},
    },
    "time": {"column": "ts", "kind": "number"},
    "user_id": "user",
    "user": {"user": "text", "age": "number"},
    "ad_id": "movie",
    "ad": {
        "item": {"column": "movie", "kind": "text"},
        "genre": "text",
        "year": {"kind": "number", "buckets": "quantile"},
    },
    "ignore": ["name"],
}


def ratings() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user": rng.integers(40, size=ROWS),
            "movie": rng.integers(25, size=ROWS),
            "stars": rng.integers(1, 11, ROWS) / 2,
            "ts": np.arange(ROWS),
        }
    )


def users() -> list[str]:
    return ["id,age,name", *(f"{i},{20 + i},n{i}" for i in range(40))]


def movies() -> pl.DataFrame:
    i = pl.Series(range(25))
    return pl.DataFrame(
        {"movie": i, "genre": (i % 3).cast(pl.String), "year": i + 1970}
    )


def write(folder: Path, user_lines: list[str], **changes: Any) -> DataConfig:
    ratings().write_csv(folder / "ratings.csv")
    (folder / "users.csv").write_text("\n".join(user_lines) + "\n")
    movies().write_parquet(folder / "movies.parquet")
    sides = {
        "users": {"file": str(folder / "users.csv"), "key": "id"},
        "items": str(folder / "movies.parquet"),
    }
    values = {
        "adapter": "table",
        "raw": str(folder / "ratings.csv"),
        "table": TABLE | sides | changes,
        "min_count": 2,
    }
    return DataConfig.model_validate(values)


def test_rows_get_the_values_of_their_user_and_ad(tmp_path: Path) -> None:
    bad = BadRows()
    rows, log = read(write(tmp_path, users()), bad), ratings()
    assert not bad.count and not bad.unmatched
    assert rows["user"].to_list() == log["user"].cast(pl.String).to_list()
    assert (rows["age"] == log["user"] + 20).all()
    assert (rows["year"] == log["movie"] + 1970).all()
    assert rows["genre"].to_list() == (log["movie"] % 3).cast(pl.String).to_list()


def test_a_label_is_made_of_a_rating(tmp_path: Path) -> None:
    rows, log = read(write(tmp_path, users()), BadRows()), ratings()
    assert (rows["click"] == (log["stars"] >= 4)).all()
    assert (rows["stars"] == log["stars"]).all()
    text = (tmp_path / "ratings.csv").read_text().splitlines()
    text[3], text[5] = "1,2,inf,3", "1,2,,3"
    bad = BadRows()
    config = write(tmp_path, users())
    (tmp_path / "ratings.csv").write_text("\n".join(text) + "\n")
    assert len(read(config, bad)) == ROWS - 2
    path = tmp_path / "ratings.csv"
    assert bad.first[0] == f"{path}:4: stars is 'inf', expected a finite number"
    assert bad.first[1] == f"{path}:6: stars is '', expected a finite number"


def test_an_id_without_a_row_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of four users at most a tenth of the rows; their features are missing."""
    config, bad = write(tmp_path, [*users()[:3], *users()[4:]]), BadRows()
    rows, log = read(config, bad), ratings()
    lost = log["user"] == 2
    assert rows["age"].is_null().to_list() == lost.to_list()
    path, side = tmp_path / "ratings.csv", tmp_path / "users.csv"
    assert bad.unmatched == {str(side): lost.sum()} and bad.count == 0
    line = lost.arg_true()[0] + 2
    assert bad.first_unmatched[0] == f"{path}:{line}: user '2' has no row in {side}"
    out = tmp_path / "out"
    out.mkdir()
    with caplog.at_level(logging.WARNING):
        prepare(config, table.open_data(config), out)
    assert f"{lost.sum()} rows have no row in {side}" in caplog.text
    report = json.loads((out / "report.json").read_text())
    assert report["unmatched_rows"]["tables"] == {str(side): lost.sum()}
    assert f"{path}:{line}: user '2'" in (out / "report.md").read_text()


def test_ids_that_are_written_in_another_way_are_refused(tmp_path: Path) -> None:
    header, *lines = users()
    config = write(tmp_path, [header, *(f"0{line}" for line in lines)])
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"600 of 600 rows .*data\.max_unmatched_rows"):
        prepare(config, table.open_data(config), tmp_path / "out")


def test_a_key_that_is_there_twice_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write(tmp_path, [*users(), "7,99,again"])
    message = r"users\.csv:42: id '7' stands there twice"
    with pytest.raises(DataError, match=r"1 of 41 rows .*" + message):
        table.open_data(config)
    with caplog.at_level(logging.WARNING):
        rows = read(config.model_copy(update={"max_bad_rows": 0.1}), BadRows())
    assert "users.csv:42: id '7' stands there twice" in caplog.text
    assert len(rows) == ROWS and (rows["age"] == ratings()["user"] + 20).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"users": "gone.csv"}, "data.table.users: no such file: gone.csv"),
        ({"user": {"user": "text"}}, "no feature of its side .* found id, age, name"),
        ({"user": {"user": "text", "old": "number", "age": "number"}}, "no column old"),
        ({"ignore": []}, r"users\.csv: columns \['name'\] are not used"),
        ({"items": {"file": "?", "key": "sku"}}, "no column sku; found movie, genre"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    if "items" in changes:
        changes["items"]["file"] = str(tmp_path / "movies.parquet")
    with pytest.raises((ConfigError, SchemaError), match=reason):
        table.open_data(write(tmp_path, users(), **changes))


def test_an_unknown_column_comes_with_those_of_all_files(tmp_path: Path) -> None:
    ad = TABLE["ad"] | {"genres": "text"}
    pattern = r"no column genres; found user, .*movies\.parquet: movie, genre, year"
    with pytest.raises(SchemaError, match=pattern):
        table.open_data(write(tmp_path, users(), ad=ad))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": None}, "users: `user_id` is missing"),
        ({"ad_id": None}, "items: `ad_id` is missing"),
        ({"labels": {"click": {"from": "a", "column": "b"}}}, "from"),
        (
            {"labels": {"v": {"kind": "value", "max_value": 1, "at_least": 1}}},
            "`at_least` makes 0 and 1",
        ),
    ],
)
def test_settings_that_do_not_fit(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        write(tmp_path, users(), **change)


def test_a_history_is_made_of_the_log_whatever_a_side_table_holds(
    tmp_path: Path,
) -> None:
    user = TABLE["user"] | {"name": {"of": "item", "length": 5}}
    data = table.open_data(write(tmp_path, users(), user=user))
    assert dict(data.histories) == {"name": "item"}
    frame = next(iter(data.read(data.files[0], BadRows())))
    check_rows(frame, data)


def test_a_changed_side_table_is_another_data_set(tmp_path: Path) -> None:
    names = [path.name for path in files_read(write(tmp_path, users()))]
    assert names == ["ratings.csv", "users.csv", "movies.parquet"]


def test_any_number_of_ranks_joins_the_same_rows(tmp_path: Path) -> None:
    config = write(tmp_path, [*users()[:3], *users()[4:]])
    for i in range(3):
        ratings()[i * 200 : (i + 1) * 200].write_csv(tmp_path / f"part_{i}.csv")
    config = config.model_copy(update={"raw": (str(tmp_path / "part_*.csv"),)})
    one, two = (prepare_on(n, config, tmp_path / f"on_{n}") for n in (1, 2))
    assert len(load_catalog(one)) == 25
    assert_same_files(one, two)


def test_files_without_a_header_get_their_names(tmp_path: Path) -> None:
    """As MovieLens has them: folds without a header, and .dat in Latin-1."""
    folds = [tmp_path / f"fold{i}.csv" for i in range(2)]
    for i, path in enumerate(folds):
        path.write_text("".join(f"{u},{u % 3},{1 + (u + i) % 5}\n" for u in range(9)))
    movies = tmp_path / "movies.dat"
    text = "0::\xc9\xe8, the (1995)::Comedy|Drama\n1::B::Drama\n2::C::\n"
    movies.write_bytes(text.encode("latin-1"))
    mapping: dict[str, Any] = {
        "names": ["user", "item", "rating"],
        "labels": {"click": {"from": "rating", "at_least": 4}},
        "user_id": "user",
        "user": {"user": "text"},
        "ad_id": "item",
        "items": {
            "file": str(movies),
            "key": "movie",
            "names": ["movie", "title", "genres"],
        },
        "ad": {"item": "text", "title": "text", "genres": "text"},
    }
    values = {"adapter": "table", "raw": [str(p) for p in folds], "table": mapping}
    bad = BadRows()
    rows = read(DataConfig.model_validate(values), bad)
    assert len(rows) == 18 and not bad.count
    assert rows["title"][0] == "\xc9\xe8, the (1995)"
    assert rows["genres"].to_list()[:3] == ["Comedy|Drama", "Drama", None]
    mapping["items"] = {"file": str(movies), "key": "movie"}
    with pytest.raises(ConfigError, match="has no header; name its columns"):
        read(DataConfig.model_validate(values), bad)
