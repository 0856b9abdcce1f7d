"""Negatives that `prepare` draws for positives, against plain Python over the log."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from click_log import POSITIVES, ROWS, config_of, decoded, positives, prepared
from pydantic import ValidationError
from raw_data import prepare_table
from thread_ranks import assert_same_files, prepare_on

from torchrec_adrec.data.dataset import Negatives
from torchrec_adrec.data.prepare.drawn_negatives import NOT_DRAWN, Drawer
from torchrec_adrec.data.prepare.log_rows import LogAds, LogRows
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.context import ImpressionCounts
from torchrec_adrec.evaluation.shown import shown_counts
from torchrec_adrec.schema import Schema


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
    # What a user takes later must be among his negatives, or their gaps would tell it.
    ever = actual.filter(is_positive).select("user", "name").unique()
    of_training = actual.filter(~is_positive, pl.col("split") == "train")
    later = of_training.join(ever, on=["user", "name"])
    assert (len(later) > 0) == (split != "user")


def test_a_negative_has_no_other_outcome(tmp_path: Path) -> None:
    stars = {"kind": "value", "max_value": 5}
    table = POSITIVES | {"labels": {**POSITIVES["labels"], "stars": stars}}
    rows = positives().with_columns(stars=pl.int_range(pl.len()) % 5 + 1)
    actual = prepared(tmp_path / "a", rows, table)
    is_positive = actual["click"] == 1
    assert sorted(actual.filter(is_positive)["stars"]) == sorted(rows["stars"])
    assert actual.filter(~is_positive)["stars"].is_nan().all()


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
        assert prices[price] == of_item.sort("ts")["price"][-1]
    catalog = pl.read_parquet(tmp_path / "a/catalog.parquet")
    latest = rows.sort("ts").group_by("item").agg(pl.col("price").last())
    served = catalog.select("raw_item", pl.col("raw_price").cast(pl.Float64))
    assert dict(served.iter_rows()) == dict(latest.iter_rows())


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


@pytest.mark.parametrize("split", ["time", "leave_one_out"])
def test_ranks_and_blocks_make_the_same_rows(tmp_path: Path, split: str) -> None:
    rows = positives()
    for i in range(3):
        rows[i * 200 : (i + 1) * 200].write_csv(tmp_path / f"part_{i}.csv")
    config = config_of(tmp_path, POSITIVES, split={"by": split})
    one, two = (prepare_on(n, config, tmp_path / f"on_{n}") for n in (1, 2))
    assert_same_files(one, two)


def test_a_drawn_negative_is_in_the_fold_of_its_positive(tmp_path: Path) -> None:
    """A user has three negatives for each positive, less those of another fold: alone
    in its fold, a positive would lower the user's rate, and a negative raise it.
    """
    statistics = {"folds": 4, "strengths": [1]}
    rows = prepared(tmp_path / "a", positives(), POSITIVES, statistics=statistics)
    train = rows.filter(pl.col("split") == "train")
    group = train.with_columns(group=(pl.col("click") == 1).cum_sum()).group_by("group")
    of_group = group.agg(
        pl.col("uid.click.1", "uid.click.count").n_unique(), n=pl.len()
    )
    assert (of_group["n"] == 4).sum() > 0.9 * len(of_group)
    assert (of_group["uid.click.1"] == 1).all() and (
        of_group["uid.click.count"] == 1
    ).all()
    assert train["uid.click.count"].n_unique() > 10  # folds do differ


def test_a_leak_is_seen_beside_drawn_negatives(tmp_path: Path) -> None:
    """The planted leak: a column of the user that is made of the row's item."""
    rows = positives().with_columns(hint="of " + pl.col("item"))
    user = {**POSITIVES["user"], "hint": "text"}
    with pytest.raises(DataError, match="hint"):
        prepare_table(tmp_path / "a", rows, POSITIVES | {"user": user})


def test_baselines_count_what_was_shown_and_not_what_was_drawn(tmp_path: Path) -> None:
    rows = prepared(tmp_path / "a", positives(), POSITIVES)
    catalog = pl.read_parquet(tmp_path / "a/catalog.parquet")
    logged = rows.filter(pl.col("split") == "train", pl.col("click") == 1)
    counts = Counter(logged["name"])
    expected = [counts[name] for name in catalog["raw_item"]]
    assert shown_counts(tmp_path / "a", catalog).tolist() == expected
    schema = Schema.load(tmp_path / "a/schema.json")
    everywhere = slice(0, len(catalog))
    ids = catalog["ad_id"].to_numpy()
    shown = ImpressionCounts.count(tmp_path / "a", schema, ids, everywhere)
    assert shown.ads.tolist() == expected and shown.rows == len(logged)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"propensity": "p"}, "no policy has shown the ads"),
        (
            {"labels": {"click": {"positives_only": True, "at_least": 4}}},
            "reads no column; leave at_least out",
        ),
        (
            {"labels": {"click": {"positives_only": True, "from": "stars"}}},
            "reads no column; leave column out",
        ),
    ],
)
def test_settings_that_drawn_negatives_would_ignore(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        config_of(tmp_path, POSITIVES | change)
