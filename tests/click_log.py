"""A small log of clicks whose history anybody can work out, and its mappings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from raw_data import prepare_table

from torchrec_adrec.config.data import DataConfig

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


def positives() -> pl.DataFrame:
    """A popular item comes late: three quarters of the rows from time 50 on."""
    rng = np.random.default_rng(1)
    rows = log().drop("click")
    late = (rows["ts"] >= 50) & pl.Series(rng.random(ROWS) < 0.75)
    item = pl.when(pl.Series(late)).then(pl.lit("late")).otherwise(pl.col("item"))
    price = pl.when(pl.Series(late)).then(pl.col("ts")).otherwise(pl.col("price"))
    return rows.with_columns(item=item, price=price).sample(fraction=1, seed=3)


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


def config_of(folder: Path, table: dict[str, Any], **data: Any) -> DataConfig:
    values = {"adapter": "table", "raw": str(folder / "*.csv"), "table": table}
    return DataConfig.model_validate(values | {"min_count": 2} | data)
