"""The run that index_delta.py updates: 30,000 ads that have names, and small models."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
from some_stages import run_stages

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from named_ads import TABLE

ADS, USERS, ROWS, BRANDS, TASTES, K = 30_000, 2_000, 90_000, 60, 12, 500
COLUMNS = TABLE | {"user": {"user": "text", "taste": "text"}}
SETTINGS = (
    "data.adapter=table",
    f"data.table={COLUMNS}",
    "device=cpu",
    "train={epochs: 1, dead_model: warn}",
    "retrieval={embedding_dim: 16, hidden: [32], output_dim: 32}",
    "ranking={model: dnn, embedding_dim: 8, hidden: [16], blend: none}",
    "ranking.tables=scratch",
    "index={kind: ivf_flat, shards: 1}",
    f"recommend.candidates={K}",
    "evaluation.queries=500",
)


def make_run(run: Path) -> None:
    """Make all stages that serving needs, if they are not there."""
    run.parent.mkdir(parents=True, exist_ok=True)
    rows = run.with_name("rows.parquet")
    if not rows.exists():
        raw_rows().write_parquet(rows)
    overrides = [*SETTINGS, f"data.raw=[{rows.resolve()}]"]
    names = ("data", "retrieval", "export", "index", "ranking")
    run_stages(None, overrides, run, "1x1", *names)


def raw_rows() -> pl.DataFrame:
    """Clicks of users, who like the brands of their taste; every ad is shown."""
    draw = np.random.default_rng(0)
    # Every ad is in the rows, so that the catalog holds all of them.
    item = np.concatenate([np.arange(ADS), draw.integers(ADS, size=ROWS - ADS)])
    item, user = draw.permutation(item), draw.integers(USERS, size=ROWS)
    likes = 0.5 * (item % BRANDS % TASTES == user % TASTES)
    return pl.DataFrame(
        {
            "click": (draw.random(ROWS) < 0.05 + likes).astype(np.int64),
            "user": [f"u{x}" for x in user],
            "taste": [f"t{x % TASTES}" for x in user],
            "item": [f"a{x}" for x in item],
            "brand": [f"b{x % BRANDS}" for x in item],
            "price": (item % 50) * 1.5,
        }
    )


def raw_user(number: int) -> dict[str, str]:
    """The columns of a user, as a request holds them."""
    return {"user": f"u{number}", "taste": f"t{number % TASTES}"}
