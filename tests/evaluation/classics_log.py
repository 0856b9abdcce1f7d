"""A log of clicks with times, and the settings of small towers on it."""

from typing import Any

import numpy as np
import polars as pl

GROUPS, USERS, ITEMS, TAKEN, LENGTH = 4, 10, 12, 9, 4
TABLE: dict[str, Any] = {
    "labels": {"click": {"positives_only": True, "negatives": 0}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {
        "city": "text",
        "uid": "text",
        "history": {"of": "item", "length": LENGTH},
    },
    "ad": {"item": "text", "price": "number"},
    "ad_id": "item",
}
STEPS = (
    "retrieval={embedding_dim: 8, hidden: [8], output_dim: 8, alpha: 0}",
    "train={batch_size: 64, epochs: 2, health_every: 0, dead_model: warn}",
)
# The mean reads who the user is too; attention the items in their order alone.
ENCODERS = {
    "mean": "retrieval.features=[uid, city, history, item]",
    "attention": "retrieval.features=[history, item, price]",
}


def rows() -> pl.DataFrame:
    """Users of four groups, each of whom takes items of his group, all in turns."""
    rng = np.random.default_rng(0)
    chosen = [
        [f"i{u % GROUPS}.{item}" for item in rng.permutation(ITEMS)[:TAKEN]]
        for u in range(GROUPS * USERS)
    ]
    pairs = [
        (f"u{u}", items[turn])
        for turn in range(TAKEN)
        for u, items in enumerate(chosen)
    ]
    users, items = zip(*pairs, strict=True)
    frame = pl.DataFrame({"uid": users, "item": items, "ts": range(len(pairs))})
    return frame.with_columns(
        city=pl.col("uid").str.slice(-1), price=pl.col("item").str.len_chars()
    )
