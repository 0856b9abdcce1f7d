"""A run of an own table whose ads have names, so that they can be replaced."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from trained_run import make_stages

from torchrec_adrec.config.run import Config, load_config

ADS, USERS, ROWS = 200, 150, 3000
TABLE: dict[str, Any] = {
    "labels": {"click": {}},
    "user": {"user": "text", "city": "text", "age": "number"},
    "ad": {"item": "text", "brand": "text", "price": "number"},
    "ad_id": "item",
}
SETTINGS = (
    "data.adapter=table",
    f"data.table={TABLE}",
    "train={batch_size: 128, epochs: 1, dead_model: warn}",
    "retrieval={embedding_dim: 4, hidden: [8], output_dim: 8}",
    "ranking={model_dim: 4, heads: 1, head_dim: 8, feedforward_dim: 8, blend: none}",
    "recommend={candidates: 50, top: 10}",
)


def config(rows: Path, *overrides: str) -> Config:
    """Settings of a run of these rows."""
    return load_config(None, [*SETTINGS, f"data.raw=[{rows}]", *overrides])


def make_run(out: Path, *overrides: str) -> None:
    """Make all stages of a run, its rows beside it."""
    rows = out.with_name(f"{out.name}.csv")
    raw_rows().write_csv(rows)
    make_stages(out, config(rows, *overrides))


def raw_rows() -> pl.DataFrame:
    """Clicks of users on ads; an ad has a brand and a price."""
    draw = np.random.default_rng(0)
    item, user = draw.integers(ADS, size=ROWS), draw.integers(USERS, size=ROWS)
    likes = (item % 7 == user % 7) * 0.5
    return pl.DataFrame(
        {
            "click": (draw.random(ROWS) < 0.1 + likes).astype(np.int64),
            "user": [f"u{x}" for x in user],
            "city": [f"c{x % 7}" for x in user],
            "age": (user % 50).astype(np.float64),
            "item": [f"a{x}" for x in item],
            "brand": [f"b{x % 7}" for x in item],
            "price": (item % 5) * 1.5,
        }
    )


def copy_of(run: Path, out: Path) -> Path:
    """Copy a run whose ads, export and index may be changed."""
    out.mkdir()
    for stage in ("data", "retrieval", "ranking"):
        (out / stage).symlink_to(run / stage)
    for stage in ("export", "index"):
        shutil.copytree(run / stage, out / stage)
    return out


def rows_of(folder: Path, *lines: str) -> Path:
    """Write a file of ads."""
    path = folder / "ads.csv"
    path.write_text("\n".join(["item,brand,price", *lines]) + "\n")
    return path


def ids_of(folder: Path, *ids: object) -> Path:
    """Write a file of ids."""
    path = folder / "ids.txt"
    path.write_text("".join(f"{ad}\n" for ad in ids))
    return path
