"""Rows of an own table and their statistics, for the tests of both."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import table
from torchrec_adrec.data.prepare.prepare import prepare

ROWS, TRAIN_ROWS, VALID_ROWS = 3000, 2400, 300
SCALARS = {"user": ("city", "device", "age"), "ad": ("brand", "price")}
TABLE = {
    "labels": {"click": {}, "buy": {}, "spent": {"kind": "value", "max_value": 9}},
    "user": {"city": "text", "device": "text", "age": "number"},
    "ad": {
        "brand": "text",
        "price": {"kind": "number", "buckets": "quantile"},
    },
}


def raw_rows(seed: int = 0) -> pl.DataFrame:
    """Random rows; `city` has hardly two rows a value, `buy` is often unobserved."""
    draw = np.random.default_rng(seed)
    click = draw.random(ROWS) < 0.3
    frame = pl.DataFrame(
        {
            "click": click.astype(np.int64),
            "buy": (draw.random(ROWS) < 0.5).astype(np.int64),
            "spent": draw.random(ROWS).round(2),
            "city": [f"c{x}" for x in draw.integers(1200, size=ROWS)],
            "device": [f"d{x}" for x in draw.integers(6, size=ROWS)],
            "age": draw.integers(200, size=ROWS),
            "brand": [f"b{x}" for x in draw.integers(9, size=ROWS)],
            "price": draw.integers(5, size=ROWS) * 1.5,
        }
    )
    return frame.with_columns(
        buy=pl.when(pl.Series(click)).then("buy"),
        city=pl.when(pl.Series(draw.random(ROWS) > 0.1)).then("city"),
        age=pl.when(pl.Series(draw.random(ROWS) > 0.1)).then("age"),
    )


def across(holds_until: int = ROWS) -> pl.DataFrame:
    """Rows clicked if `device` or `brand` is odd, not both; the law ends at a row."""
    rows = raw_rows()
    device, brand = (rows[n].str.tail(1).cast(pl.Int64) for n in ("device", "brand"))
    either = ((device % 2) != (brand % 2)).to_numpy()
    either[holds_until:] = np.random.default_rng(2).permutation(either[holds_until:])
    draw = np.random.default_rng(1).random(ROWS)
    return rows.with_columns(click=pl.Series((draw < 0.1 + 0.6 * either).astype(int)))


def prepare_rows(out: Path, rows: pl.DataFrame, **statistics: object) -> dict[str, Any]:
    """Prepare an own table with statistics; return the report."""
    out.mkdir()
    rows.write_parquet(out.parent / f"{out.name}.parquet")
    config = DataConfig.model_validate(
        {
            "adapter": "table",
            "raw": [str(out.parent / f"{out.name}.parquet")],
            "table": TABLE,
            "min_count": 1,
            "statistics": statistics,
            "allow_varying_ads": True,
        }
    )
    prepare(config, table.open_data(config), out)
    return dict(json.loads((out / "report.json").read_text()))
