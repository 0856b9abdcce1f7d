"""Histories that `prepare` makes, and lists with the future, against plain Python."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click_log import ROWS, TABLE, config_of, decoded, log, prepared
from conftest import REPOSITORY
from raw_data import prepare_table
from thread_ranks import prepare_on

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.prepare import histories
from torchrec_adrec.errors import DataError


def expected_histories(rows: pl.DataFrame, length: int) -> Iterator[list[str]]:
    """What each row's user clicked strictly before, row by row."""
    for row in rows.iter_rows(named=True):
        before = rows.filter(
            (pl.col("uid") == row["uid"])
            & (pl.col("ts") < row["ts"])
            & (pl.col("click") == 1)
        )
        yield before.sort("ts", maintain_order=True)["item"].to_list()[-length:]


def test_a_history_is_what_was_clicked_strictly_before(tmp_path: Path) -> None:
    """In whichever of three files, none of them in time order, the click stands."""
    rows = log()
    for i in range(3):
        rows[i * 200 : (i + 1) * 200].write_csv(tmp_path / f"part_{i}.csv")
    config = config_of(tmp_path, TABLE, split={"by": "random"}, min_count=1)
    actual = decoded(prepare_on(2, config, tmp_path / "a"))
    # All items are in the catalog, and min_count is 1, so ids are texts again.
    expected = Counter(
        (item, click, *history)
        for item, click, history in zip(
            rows["item"], rows["click"], expected_histories(rows, 3), strict=True
        )
    )
    counted = Counter(
        (item, int(click), *history)
        for item, click, history in actual.select("name", "click", "seen").iter_rows()
    )
    assert counted.total() == ROWS
    unknown = sum((expected - counted).values())  # items that training never shows
    assert unknown <= 0.02 * ROWS


def test_a_later_click_in_a_history_stops_prepare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted leak: clicks of the row's own time count as before."""

    def up_to(sorted_: Any, values: Any, side: str) -> Any:
        return np.searchsorted(sorted_, values, side="right")

    class Leaky:
        searchsorted = staticmethod(up_to)

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

    monkeypatch.setattr(histories, "np", Leaky())
    with pytest.raises(DataError, match=r"a\.csv, good row \d+: history holds 'i"):
        prepare_table(tmp_path / "a", log(), TABLE)


def with_list(rows: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The histories as a column of the data, and the mapping that reads it."""
    lists = [" ".join(history) for history in expected_histories(rows, 3)]
    sequence = {"kind": "sequence", "shares_ids_with": "item", "max_length": 3}
    table = TABLE | {"user": {"uid": "text", "seen": sequence}}
    return rows.with_columns(seen=pl.Series(lists)), table


@pytest.mark.parametrize("place", ["own", "later"])
def test_one_row_of_a_list_with_the_future_is_named(tmp_path: Path, place: str) -> None:
    rows, table = with_list(log().sort("ts"))
    prepare_table(tmp_path / "good", rows, table)
    clicked = (rows["ts"] > 50) & (rows["click"] == 1)
    for number in clicked.arg_true().to_list():
        row = rows.row(number, named=True)
        others = rows.filter((pl.col("uid") == row["uid"]) & (pl.col("click") == 1))
        earlier = set(others.filter(pl.col("ts") < row["ts"])["item"])
        if place == "later":
            others = others.filter(pl.col("ts") > row["ts"])
        items = [row["item"]] if place == "own" else others["item"].to_list()
        new = [item for item in items if item not in earlier]
        if new:
            break
    history = pl.when(pl.int_range(pl.len()) == number).then(pl.lit(new[0]))
    planted = rows.with_columns(seen=history.otherwise(pl.col("seen")))
    with pytest.raises(DataError) as error:
        prepare_table(tmp_path / "bad", planted, table)
    message = f"bad.csv, good row {number + 1}: seen holds '{new[0]}'"
    assert message in str(error.value) and "allow_leaky_sides" in str(error.value)
    prepare_table(tmp_path / "allowed", planted, table, allow_leaky_sides=True)


def test_what_was_clicked_before_the_log_began_is_no_future(tmp_path: Path) -> None:
    """The same list in every row of a user, as KuaiRand has it, with later clicks."""
    rows, table = with_list(log().sort("ts"))
    users = rows.group_by("uid").agg(seen=pl.col("item").unique().head(3).str.join(" "))
    prepare_table(tmp_path / "a", rows.drop("seen").join(users, on="uid"), table)


def test_a_click_of_no_time_column_is_before_the_rows_behind_it(tmp_path: Path) -> None:
    table = {k: v for k, v in TABLE.items() if k != "time"} | {"ignore": ["ts"]}
    rows = log()
    numbered = rows.with_columns(ts=pl.int_range(pl.len()))
    actual = prepared(tmp_path / "a", rows, table)
    expected = list(expected_histories(numbered, 3))
    assert actual["seen"].to_list()[:400] == expected[:400]


def test_real_ratings_are_prepared(real_data: Path, tmp_path: Path) -> None:
    """MovieLens as it is packed: two files, no column that anybody made."""
    folder = real_data / "movielens_latest_small"
    config = load_config(
        REPOSITORY / "configs/movielens_small.yaml",
        [
            f"data.raw={folder / 'ratings.csv'}",
            f"data.table.items.file={folder / 'movies.csv'}",
        ],
    ).data
    out = prepare_on(1, config, tmp_path / "out")
    report = json.loads((out / "report.json").read_text())
    assert report["rows_in"] == 100_836 and not report["bad_rows"]["count"]
    assert report["unmatched_rows"]["tables"] == {} and report["ads"]["all"] == 9_724
    rates = [split["label_rate"]["click"] for split in report["splits"].values()]
    assert all(0.4 < rate < 0.6 for rate in rates)
