"""Retrieval judged exactly: every held-out click against the whole catalog.

The protocol stands beside the figures that it explains: docs/evaluation.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.evaluation.bootstrap import (
    LEVEL,
    RESAMPLES,
    interval,
    resampled_means,
)
from torchrec_adrec.evaluation.exact_search import SearchResult
from torchrec_adrec.evaluation.ranking_metrics import (
    DECILES,
    PerQuery,
    coverage,
    cuts_of,
    one_relevant,
    popularity,
    popularity_deciles,
)

CLICKED = "clicked_popularity"  # beside the lists' popularity, to compare it with
DIFFERENCES = (("towers", "popularity"), ("towers", "context"))


class RetrievalProtocol(BaseModel):
    """How figures of retrieval came about; without it they mean nothing.

    Attributes:
        split: where the queries are from.
        queries: how many there are, of `clicks` that the split has.
        seed: of the draw of queries, and of the bootstrap.
        filtered: candidates that were left out.
        cuts: the K of Recall@K and the others.
        context: how the baseline `context` was set: `context.TunedSmoothing`, and the
            training rows that it was counted on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str = "test"
    split_by: str
    query: str = "a row that was clicked; its user's columns alone are known"
    relevant: str = "the one ad that was clicked"
    queries: int
    clicks: int
    seed: int
    candidates: str = "all ads of the catalog, of any split"
    catalog: int
    filtered: str = "nothing"
    ties: str = (
        "count against the clicked ad; in lists they stand by place in the catalog"
    )
    scores: str = "double precision, rounded to the 24 bits of a float32"
    cuts: tuple[int, ...]
    recall: str = "hits / min(K, relevant ads)"
    popularity: str = "mean share of the training impressions of the ads in the lists"
    deciles: str = "of the training impressions' mass, 1: the most shown ads"
    seen: str = "an ad with at least one impression in training"
    bootstrap: str = f"percentiles of {RESAMPLES} draws of the queries, not of users"
    level: float = LEVEL
    context: dict[str, float | int | None]


@dataclass(frozen=True)
class Judged:
    """Per-query figures of one way to order the ads, and its lists."""

    values: PerQuery
    lists: Int64s


def retrieval_metrics(
    ways: Mapping[str, SearchResult], clicked: Int64s, impressions: Int64s, seed: int
) -> dict[str, Any]:
    """Every way side by side: all queries, seen and unseen ads apart, by decile.

    Args:
        ways: what each found for the same queries.
        clicked: (Q,) places in the catalog.
        impressions: (N,) of each ad in training.

    Returns:
        Group -> way -> figures, each with its `intervals`; group -> `differences` ->
        pair of ways -> recall and MRR, paired query by query; `deciles` -> 1 to 10 ->
        way -> recall and MRR.
    """
    share = impressions / max(int(impressions.sum()), 1)
    cuts = cuts_of(len(impressions))
    judged = {name: _judge(way, share, clicked, cuts) for name, way in ways.items()}
    decile = popularity_deciles(impressions)[clicked]
    seen = impressions[clicked] > 0
    groups = {"all": np.ones_like(seen), "seen_ads": seen, "unseen_ads": ~seen}
    found: dict[str, Any] = {
        name: _group(judged, kept, cuts, len(impressions), seed)
        for name, kept in groups.items()
        if kept.any()
    }
    found["deciles"] = {
        str(d): {name: _recalls(way, decile == d, seed) for name, way in judged.items()}
        for d in range(1, DECILES + 1)
        if (decile == d).any()
    }
    return found


def _judge(
    found: SearchResult, share: Float64s, clicked: Int64s, cuts: tuple[int, ...]
) -> Judged:
    values = one_relevant(found.ranks, cuts) | popularity(found.lists, share, cuts)
    return Judged(values | {CLICKED: share[clicked]}, found.lists)


def _group(
    judged: Mapping[str, Judged],
    kept: Any,
    cuts: tuple[int, ...],
    catalog: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of some queries, every way and the differences of recall."""
    draws = {name: _draws(way, kept, seed) for name, way in judged.items()}
    found: dict[str, Any] = {}
    for name, way in judged.items():
        means = {key: value[kept].mean() for key, value in way.values.items()}
        figures = _with_lift(means, cuts) | coverage(way.lists[kept], cuts, catalog)
        spread = {k: interval(v) for k, v in _with_lift(draws[name], cuts).items()}
        found[name] = _plain(figures) | {"intervals": _plain(spread)}
        found[name]["clicks"] = int(kept.sum())
    pairs = [pair for pair in DIFFERENCES if set(pair) <= set(judged)]
    found["differences"] = {
        f"{one} - {other}": _difference(judged, draws, kept, one, other)
        for one, other in pairs
    }
    return found


def _draws(way: Judged, kept: Any, seed: int) -> PerQuery:
    """(resamples,) of each figure; the same draws for every way."""
    values = np.stack([value[kept] for value in way.values.values()], axis=1)
    return dict(zip(way.values, resampled_means(values, seed).T, strict=True))


def _with_lift(means: Mapping[str, Any], cuts: tuple[int, ...]) -> dict[str, Any]:
    """With how much more popular than the clicked ads the listed ones are.

    Popularity lift: Abdollahpouri et al., RecSys 2020. Not there if no clicked ad was
    shown in training.
    """
    clicked = means[CLICKED]
    if not np.all(clicked > 0):
        return dict(means)
    return dict(means) | {
        f"popularity_lift@{k}": means[f"popularity@{k}"] / clicked - 1 for k in cuts
    }


def _difference(
    judged: Mapping[str, Judged],
    draws: Mapping[str, PerQuery],
    kept: Any,
    one: str,
    other: str,
) -> dict[str, Any]:
    names = _short(judged[one])
    gains = {n: judged[one].values[n] - judged[other].values[n] for n in names}
    spread = {n: interval(draws[one][n] - draws[other][n]) for n in names}
    return _plain({n: gain[kept].mean() for n, gain in gains.items()}) | {
        "intervals": _plain(spread)
    }


def _recalls(way: Judged, kept: Any, seed: int) -> dict[str, Any]:
    """The figures that most is said with, of some queries."""
    names = _short(way)
    values = np.stack([way.values[name][kept] for name in names], axis=1)
    spread = interval(resampled_means(values, seed)).T
    return _plain(dict(zip(names, values.mean(axis=0), strict=True))) | {
        "clicks": len(values),
        "intervals": _plain(dict(zip(names, spread, strict=True))),
    }


def _short(way: Judged) -> list[str]:
    return [n for n in way.values if n.startswith("recall@") or n == "mrr"]


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON."""
    return {name: np.asarray(value).tolist() for name, value in figures.items()}
