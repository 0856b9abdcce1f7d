"""Histories, drawn negatives and leave-one-out, against plain Python over the log."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY
from raw_data import prepare_table
from thread_ranks import assert_same_files, prepare_on

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.dataset import Negatives
from torchrec_adrec.data.prepare import histories
from torchrec_adrec.data.prepare.drawn_negatives import NOT_DRAWN, Drawer
from torchrec_adrec.data.prepare.log_rows import LogAds, LogRows
from torchrec_adrec.errors import DataError

ROWS, USERS, ITEMS = 600, 30, 40
TABLE: dict[str, Any] = {
    "labels": {"click": {}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {"uid": "text", "history": {"of": "item", "length": 3}},
    "ad": {"item": "text", "price": "number"},
    "ad_id": "item",
}
POSITIVES = TABLE | {"labels": {"click": {"positives_only": True, "negatives": 3}}}


def log(seed: int = 0) -> pl.DataFrame:
    """Out of order, several rows at a time; an item's price rises with the time."""
    rng = np.random.default_rng(seed)
    ts, item = rng.integers(100, size=ROWS), rng.integers(ITEMS, size=ROWS) ** 2 // 40
    return pl.DataFrame(
        {
            "ts": ts,
            "uid": [f"u{i}" for i in rng.integers(USERS, size=ROWS)],
            "item": [f"i{i}" for i in item],
            "price": ts // 10 + 1000 * item,
            "click": rng.integers(2, size=ROWS),
        }
    )


def decoded(data: Path) -> pl.DataFrame:
    """The prepared rows of all splits, ids as the texts that they stand for."""
    vocabulary = json.loads((data / "schema.json").read_text())
    assert vocabulary
    catalog = pl.read_parquet(data / "catalog.parquet")
    texts = dict(zip(catalog["item"], catalog["raw_item"], strict=True))
    names = dict(zip(catalog["ad_id"], catalog["raw_item"], strict=True))
    parts = [
        pl.read_parquet(path).with_columns(split=pl.lit(path.parent.name))
        for split in ("train", "valid", "test")
        for path in sorted((data / split).glob("*.parquet"))
    ]
    rows = pl.concat(parts)
    lists = [
        [texts[i] for i in row if i >= 0]
        for row in rows.select("^history:.*$").iter_rows()
    ]
    items = [names[i] for i in rows["ad_id"]]
    return rows.with_columns(seen=pl.Series(lists), name=pl.Series(items))


def prepared(folder: Path, rows: pl.DataFrame, table: Any, **data: Any) -> pl.DataFrame:
    prepare_table(folder, rows, table, **{"min_count": 1, **data})
    return decoded(folder)


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
    rows = log()
    actual = prepared(tmp_path / "a", rows, TABLE, split={"by": "random"})
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


def positives() -> pl.DataFrame:
    """A popular item comes late: three quarters of the rows from time 50 on."""
    rng = np.random.default_rng(1)
    rows = log().drop("click")
    late = (rows["ts"] >= 50) & pl.Series(rng.random(ROWS) < 0.75)
    item = pl.when(pl.Series(late)).then(pl.lit("late")).otherwise(pl.col("item"))
    price = pl.when(pl.Series(late)).then(pl.col("ts")).otherwise(pl.col("price"))
    return rows.with_columns(item=item, price=price).sample(fraction=1, seed=3)


@pytest.mark.parametrize("by", ["popularity", "uniform"])
@pytest.mark.parametrize("split", ["time", "user", "random", "leave_one_out"])
def test_negatives_existed_and_were_not_taken(
    tmp_path: Path, by: str, split: str
) -> None:
    click = POSITIVES["labels"]["click"] | {"negatives_by": by}
    table = POSITIVES | {"labels": {"click": click}, "ad_id": None}
    rows = positives().with_columns(price=0)
    actual = prepared(tmp_path / "a", rows, table, split={"by": split})
    actual = actual.with_columns(user=pl.col("user_key"))
    names = [f.name for f in (tmp_path / "a").iterdir()]
    assert "raw" not in names
    is_positive = actual["click"] == 1
    assert is_positive.sum() == ROWS
    assert ROWS < (~is_positive).sum() <= 3 * ROWS
    # A negative stands behind its positive, with its user, in its split.
    group = is_positive.cast(pl.Int64).cum_sum()
    actual = actual.with_columns(group=group)
    per_group = actual.group_by("group").agg(
        pl.col("user", "split").n_unique(), rows=pl.len()
    )
    assert (per_group["user"] == 1).all() and (per_group["split"] == 1).all()
    assert per_group["rows"].max() == 4
    order = {"train": 0, "valid": 1, "test": 2}
    took = Counter[tuple[int, str, int]]()
    for user, name, part in actual.filter(is_positive)["user", "name", "split"].rows():
        took.update((user, name, later) for later in range(order[part], 3))
    for user, name, part in actual.filter(~is_positive)["user", "name", "split"].rows():
        assert not took[user, name, order[part]]


@pytest.mark.parametrize("by", ["popularity", "uniform"])
def test_an_ad_is_drawn_from_its_first_time_on_as_it_was_then(
    tmp_path: Path, by: str
) -> None:
    click = POSITIVES["labels"]["click"] | {"negatives_by": by}
    rows = positives()
    table = POSITIVES | {"labels": {"click": click}}
    # One split for all, and the price keeps its order through the transform.
    table = table | {"ad": {"item": "text", "price": {"kind": "number"}}}
    table["user"] = {"uid": "text", "now": {"kind": "number", "column": "ts"}}
    table["user"]["history"] = {"of": "item", "length": 3}
    actual = prepared(tmp_path / "a", rows, table, split={"by": "random"})
    times, prices = (
        dict(zip(sorted(set(actual[a])), sorted(set(rows[b])), strict=True))
        for a, b in (("now", "ts"), ("price", "price"))
    )
    negatives = actual.filter(pl.col("click") == 0)
    first = dict(rows.group_by("item").agg(pl.col("ts").min()).iter_rows())
    for now, price, name in negatives.select("now", "price", "name").iter_rows():
        assert first[name] <= times[now]
        of_item = rows.filter(pl.col("item") == name, pl.col("ts") <= times[now])
        values = of_item.sort("ts")["price"].to_list()
        assert prices[price] in values
        if by == "uniform":
            assert prices[price] == values[-1]


@pytest.mark.parametrize("by", ["popularity", "uniform"])
def test_ads_are_drawn_as_often_as_asked(by: Literal["popularity", "uniform"]) -> None:
    """Four ads, taken 7, 2, 1 and 0 times by others until the middle of the log."""
    size = 20_000
    codes = np.tile([0, 0, 0, 0, 0, 0, 0, 1, 1, 2], size // 10)
    codes[size // 2 :] = 3
    users = np.arange(size)
    rows = LogRows(users, np.arange(size), np.ones(size, dtype=np.bool_))
    ads = LogAds(codes, np.arange(4))
    drawer = Drawer.of(rows, ads, np.zeros(size, np.int8), Negatives(2, by), seed=0)
    donors = drawer.draw()
    half = size // 2
    assert (
        3 not in codes[donors[half]]
    )  # its first row is this one, and the user took it
    took_one = donors[1000:half][codes[1000:half] == 1]
    shares = np.bincount(codes[took_one].ravel(), minlength=4) / took_one.size
    known = {"popularity": [7 / 8, 0, 1 / 8, 0], "uniform": [1 / 2, 0, 1 / 2, 0]}
    assert shares == pytest.approx(known[by], abs=0.03)
    assert (donors[0] == NOT_DRAWN).all()  # nothing else had been shown
    assert (donors <= users[:, None]).all()


def test_figures_of_the_draw_are_reported(tmp_path: Path) -> None:
    rows = positives().with_columns(ts=pl.col("ts") + 1)
    rows[0, "ts"] = 0  # nothing else can be drawn for this row
    report = prepare_table(tmp_path / "a", rows, POSITIVES)
    figures = report["negatives"]
    counted = sum(s["rows"] for s in report["splits"].values())
    assert figures["drawn"] == counted - ROWS and figures["positives"] == ROWS
    assert figures["positives_with_fewer"] == 1 and report["rows_in"] == ROWS
    text = (tmp_path / "a/report.md").read_text()
    assert f"{figures['drawn']:,} negatives were drawn, at most 3 for each" in text
    other = prepare_table(tmp_path / "b", rows, POSITIVES)
    assert other["splits"] == report["splits"]


def test_a_seed_draws_other_negatives(tmp_path: Path) -> None:
    positives().write_csv(tmp_path / "a.csv")
    config = config_of(tmp_path, POSITIVES)
    one, other = (prepare_on(1, config, tmp_path / str(s), seed=s) for s in (0, 1))
    assert not decoded(one)["name"].equals(decoded(other)["name"])


def config_of(folder: Path, table: dict[str, Any], **data: Any) -> DataConfig:
    values = {"adapter": "table", "raw": str(folder / "*.csv"), "table": table}
    return DataConfig.model_validate(values | {"min_count": 2} | data)


@pytest.mark.parametrize("split", ["time", "leave_one_out"])
def test_ranks_and_blocks_make_the_same_rows(tmp_path: Path, split: str) -> None:
    rows = positives()
    for i in range(3):
        rows[i * 200 : (i + 1) * 200].write_csv(tmp_path / f"part_{i}.csv")
    config = config_of(tmp_path, POSITIVES, split={"by": split})
    one, two = (prepare_on(n, config, tmp_path / f"on_{n}") for n in (1, 2))
    assert_same_files(one, two)


@pytest.mark.parametrize("table", [TABLE, POSITIVES])
def test_leave_one_out_tests_on_the_last_click(
    tmp_path: Path, table: dict[str, Any]
) -> None:
    """Users with fewer than three clicks are trained on; what follows a click is with
    it.
    """
    is_positive = table is POSITIVES
    rows = log().with_columns(ts=pl.int_range(pl.len())).head(200)
    rows = rows.drop("click") if is_positive else rows
    actual = prepared(tmp_path / "a", rows, table, split={"by": "leave_one_out"})
    click = pl.lit(1) if is_positive else pl.col("click")
    expected = Counter[str]()
    for _, of_user in rows.with_columns(click=click).group_by("uid"):
        left = of_user["click"].sum()
        for clicked in of_user["click"] if left > 2 else []:
            left -= clicked
            expected[{0: "test", 1: "valid"}.get(left, "train")] += 1
        if of_user["click"].sum() <= 2:
            expected["train"] += len(of_user)
    if is_positive:
        actual = actual.filter(pl.col("click") == 1)
    assert Counter(actual["split"]) == expected
    for name in ("test", "valid"):
        part = actual.filter(pl.col("click") == 1, pl.col("split") == name)
        assert part["user_key"].n_unique() == len(part) > 10


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
