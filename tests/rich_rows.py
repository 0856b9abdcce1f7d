"""Rows whose users and ads have sets, vectors and prose, and an encoder of prose."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data import text_encoders

ADS, ROWS = 40, 1_500
SETTINGS: dict[str, Any] = {
    "labels": {"click": {}},
    "time": {"column": "ts", "kind": "number"},
    "user_id": "user",
    "user": {
        "user": "text",
        "likes": {"kind": "list", "separator": "|", "max_length": 3},
        "mood": "vector",
        "query": {"kind": "embedded_text", "encoder": "words"},
    },
    "ad_id": "item",
    "ad": {
        "item": "text",
        "genres": {"kind": "list", "separator": "|", "max_length": 4},
        "image": "vector",
        "title": {"kind": "embedded_text", "encoder": "words"},
    },
}


class Words:
    """A text's vector is the sum of vectors that its words' hashes draw."""

    name, size = "words 1", 6

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> Float32s:
        self.encoded += texts
        sums = np.stack([sum(map(_of_word, text.split())) for text in texts])
        lengths = np.linalg.norm(sums, axis=1)[:, None]
        return np.asarray(sums / lengths, dtype=np.float32)


def _of_word(word: str) -> Any:
    seed = int.from_bytes(blake2b(word.encode(), digest_size=4).digest(), "big")
    return np.random.default_rng(seed).normal(size=Words.size)


def use_words(patch: pytest.MonkeyPatch) -> Words:
    """Register the encoder, one instance for all who ask."""
    words = Words()
    patch.setitem(text_encoders.ENCODERS, "words", lambda: words)
    return words


def genres_of(item: int) -> list[str]:
    """Up to three of seven genres; every fifth ad has none."""
    return [f"g{(item * k) % 7}" for k in range(1, 1 + item % 5 % 4)]


def image_of(item: int) -> list[float] | None:
    """Five numbers; every seventh ad has none."""
    numbers = np.random.default_rng(item).normal(size=5) * 40
    return numbers.astype(np.float32).tolist() if item % 7 else None


def rich_rows() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    items, users = rng.integers(ADS, size=ROWS), rng.integers(40, size=ROWS)
    # A user likes ads of his own kind, which genres, image and title tell.
    click = rng.random(ROWS) < np.where(items % 7 == users % 7, 0.8, 0.2)
    return pl.DataFrame(
        {
            "click": click.astype(int),
            "ts": np.arange(ROWS),
            "user": [f"u{u}" for u in users],
            "likes": ["|".join(f"l{(u + k) % 9}" for k in range(u % 4)) for u in users],
            "mood": pl.Series(rng.normal(size=(ROWS, 3)).tolist()),
            "query": [f"kind {u % 7}" if u % 6 else None for u in users],
            "item": [f"i{i}" for i in items],
            # In any order, as files have them.
            "genres": ["|".join(rng.permutation(genres_of(i))) for i in items],
            "image": pl.Series(map(image_of, items), dtype=pl.List(pl.Float64)),
            "title": [f"title {i % 7} of {i}" if i % 8 else None for i in items],
        }
    )


def rich_config(folder: Path, **changes: Any) -> DataConfig:
    """Write the rows, and return the settings that prepare them."""
    rich_rows().write_parquet(folder / "rows.parquet")
    values = {
        "adapter": "table",
        "raw": str(folder / "rows.parquet"),
        "table": SETTINGS | changes,
        "min_count": 1,
    }
    return DataConfig.model_validate(values)
