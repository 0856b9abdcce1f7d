"""An item whose price changes is one ad with a key, and refused without one."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import adrec, on_ranks
from raw_data import prepare_table

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.schema import AD_ID

ROWS = 1050
TABLE: dict[str, Any] = {
    "labels": {"click": {}},
    "time": {"column": "ts", "kind": "number"},
    "user": {"uid": "text"},
    "ad": {
        "item": {"column": "sku", "kind": "text"},
        "brand": "text",
        "price": "number",
    },
}
KEYED = TABLE | {"ad_id": "sku"}


def rows(prices: int = 7) -> pl.DataFrame:
    """25 items of five brands, shown in turn; times fall, each of seventy rows."""
    rng = np.random.default_rng(0)
    i = np.arange(ROWS)
    return pl.DataFrame(
        {
            "ts": (ROWS - 1 - i) // 70,
            "uid": [f"u{n}" for n in rng.integers(50, size=ROWS)],
            "sku": [f"s{n}" for n in i % 25],
            "brand": [f"b{n}" for n in i % 5],
            "price": 10 + i // 25 % prices,
            "click": rng.integers(2, size=ROWS),
        }
    )


def latest(frame: pl.DataFrame) -> pl.DataFrame:
    """The latest values of each item in the order of `sku`; the last row of a time."""
    in_order = frame.with_row_index().sort("ts", "index").group_by("sku")
    last = in_order.agg(pl.col("brand").last(), pl.col("price").last())
    return last.cast({"price": pl.Float64}).sort("sku")


def catalog_values(data: Path) -> pl.DataFrame:
    """The values of each item in the catalog, in the order of `sku`."""
    price = pl.col("raw_price").cast(pl.Float64)
    catalog = load_catalog(data)
    return catalog.select(sku="raw_item", brand="raw_brand", price=price).sort("sku")


def test_without_a_key_the_copies_are_refused(tmp_path: Path) -> None:
    line = "item has 25 values but makes 175 ads, because price varies"
    with pytest.raises(DataError, match=rf"^{line}; .*data\.table\.ad_id"):
        prepare_table(tmp_path / "a", rows(), TABLE)


def test_allowed_copies_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare_table(tmp_path / "a", rows(), TABLE, allow_varying_ads=True)
        prepare_table(tmp_path / "b", rows(prices=2), TABLE)
    for folder, ads in (("a", 175), ("b", 50)):
        line = f"item has 25 values but makes {ads} ads, because price varies"
        assert line in caplog.text
        assert f"- {line}" in (tmp_path / folder / "report.md").read_text()
        assert len(load_catalog(tmp_path / folder)) == ads


def test_nothing_is_reported_of_ads_that_stay_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, table in (("a", TABLE), ("b", KEYED)):
        report = prepare_table(tmp_path / name, rows(prices=1), table)
        assert report["varying_ads"] is None and report["ads"]["all"] == 25
    assert "var" not in caplog.text


def test_with_a_key_the_latest_values_are_the_ads(tmp_path: Path) -> None:
    frame = rows()
    report = prepare_table(tmp_path / "a", frame, KEYED)
    assert catalog_values(tmp_path / "a").equals(latest(frame))
    catalog = load_catalog(tmp_path / "a")
    train = pl.read_parquet(tmp_path / "a/train/*.parquet")
    shares = train.group_by(AD_ID).agg(
        impressions=pl.len().cast(pl.Int64), clicks=pl.col("click").sum()
    )
    joined = catalog.select(AD_ID, "impressions", "clicks").join(shares, on=AD_ID)
    assert len(joined) == 25
    assert (joined["impressions"] == joined["impressions_right"]).all()
    assert (joined["clicks"] == joined["clicks_right"]).all()
    # The rows keep the price that they were shown with.
    assert train["price"].n_unique() == 7
    varying = report["varying_ads"]
    assert varying["columns"] == {"price": 25}
    first_rows = frame.sort("ts", maintain_order=True).head(len(train))
    joined = first_rows.join(latest(frame), on="sku")
    outdated = (joined["price"] != joined["price_right"]).mean()
    assert varying["outdated"]["price"] == pytest.approx(outdated, abs=1e-12)
    text = (tmp_path / "a/report.md").read_text()
    assert "- item names 25 ads, each with its latest values: price varies in" in text


def test_without_a_time_the_last_row_counts(tmp_path: Path) -> None:
    table = {k: v for k, v in KEYED.items() if k != "time"} | {"ignore": ["ts"]}
    prepare_table(tmp_path / "a", rows(), table)
    assert catalog_values(tmp_path / "a").equals(latest(rows().with_columns(ts=0)))


def test_a_latest_value_that_is_missing_stays_so(tmp_path: Path) -> None:
    frame = rows().with_columns(
        price=pl.when((pl.col("ts") < 14) | (pl.col("sku") == "s0")).then("price"),
        brand=pl.when(pl.col("sku") != "s3").then(pl.col("brand")),
    )
    prepare_table(tmp_path / "a", frame, KEYED)
    assert catalog_values(tmp_path / "a").equals(latest(frame))
    assert 0 < latest(frame)["price"].null_count() < 25


def test_a_row_without_its_key_is_bad(tmp_path: Path) -> None:
    frame = rows().with_columns(
        sku=pl.when(pl.int_range(pl.len()) != 7).then(pl.col("sku"))
    )
    report = prepare_table(tmp_path / "a", frame, KEYED)
    (first,) = report["bad_rows"]["first"]
    assert first.endswith("a.csv:9: sku is '', expected an id (text)")


def test_ranks_and_blocks_do_not_change_it(tmp_path: Path) -> None:
    """Three files of the same times: the latest time has two prices, one of them twice,
    in the first file and in the last.
    """
    frame = rows(prices=2)
    for i in range(3):
        part = frame.filter(pl.int_range(pl.len()) % 3 == i)
        part.write_csv(tmp_path / f"part_{i}.csv")
    raw = f"{tmp_path}/part_*.csv"
    data = {"adapter": "table", "raw": raw, "table": KEYED, "min_count": 2}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"data": data}))
    args = ("prepare", "--config", config, "--out")
    for process in (
        adrec(*args, tmp_path / "one"),
        on_ranks(2, *args, tmp_path / "two"),
    ):
        assert process.returncode == 0, process.stderr
    parts = [pl.read_csv(path) for path in sorted(tmp_path.glob("part_*.csv"))]
    assert catalog_values(tmp_path / "one/data").equals(latest(pl.concat(parts)))
    compared = 0
    for path in (tmp_path / "one/data").rglob("*"):
        if path.suffix in (".json", ".parquet", ".md") and path.name != "stage.json":
            other = tmp_path / "two" / path.relative_to(tmp_path / "one")
            assert other.read_bytes() == path.read_bytes(), path
            compared += 1
    assert compared > 8


def test_a_key_that_no_feature_is_made_of_is_refused() -> None:
    changes = ["data.table.ad_id=price", "data.table.ad_id=uid"]
    for change in changes:
        with pytest.raises(ConfigError, match="so no answer could name the ad"):
            load_config(Path("configs/table_example.yaml"), [change])
