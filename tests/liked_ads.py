"""A small whole run whose users have a history of the ads, with its report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from conftest import adrec
from named_ads import TABLE, raw_rows

# Values that Markdown, HTML or Streamlit would read as something else.
ODD = {"b0": "<script>alert(1)</script>", "b1": "*b* :red[x] $y$ | z"}
SETTINGS = (
    "data.adapter=table",
    "train={batch_size: 128, epochs: 4}",
    "retrieval={embedding_dim: 8, hidden: [16], output_dim: 8}",
    "ranking={model_dim: 4, heads: 1, head_dim: 8, feedforward_dim: 8}",
    "recommend={candidates: 50, top: 10}",
    "evaluation.funnel_users=20",
)


def make_whole_run(out: Path) -> None:
    """Run all stages on users who have clicked ads of a brand, and click more of it."""
    rows, draw = raw_rows(), np.random.default_rng(1)
    brands = (int(name[1:]) % 7 for name in rows["user"])
    liked = [
        [f"a{7 * x + brand}" for x in draw.integers(28, size=5)] for brand in brands
    ]
    rows = rows.with_columns(
        pl.Series("seen", ["|".join(items) for items in liked]),
        pl.col("brand").replace(ODD),
    )
    rows.write_csv(out.with_suffix(".csv"))
    table: dict[str, Any] = TABLE | {
        "user": TABLE["user"]
        | {"seen": {"kind": "sequence", "separator": "|", "shares_ids_with": "item"}}
    }
    settings = (
        f"data.table={json.dumps(table)}",
        f"data.raw=[{out.with_suffix('.csv')}]",
    )
    done = adrec("run", "--out", out, "-j", "1x1", *SETTINGS, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
