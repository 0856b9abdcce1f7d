"""The answer to one request, and how long its parts took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Recommendation:
    """The answer to one request.

    Attributes:
        ads: in the order of `recommend.rank_by`, by default the highest click
            probability first: `ad_id`, the ranker's prediction of each label, `score`
            (the towers' inner product), `rank_score` (the value of the formula, where
            it is more than the name of a label) and the ad's raw columns.
        candidates: number of ads that the ranker scored.
        milliseconds: per stage, and `total`.
    """

    ads: pl.DataFrame
    candidates: int
    milliseconds: dict[str, float]


@contextmanager
def timed(stage: str, milliseconds: dict[str, float]) -> Iterator[None]:
    """Add the time of a block to `milliseconds`."""
    start = time.perf_counter()
    yield
    milliseconds[stage] = (time.perf_counter() - start) * 1e3
