"""Judge retrieval exactly: every held-out click against the whole catalog.

The protocol is written beside the metrics that it explains: see docs/evaluation.md.
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

CLICKED = "clicked_popularity"  # what the popularity of the lists is compared with
NOTHING_LEFT_OUT = "nothing"
KNOWN_LEFT_OUT = "ads that the user is known to have clicked, and clicks on these"
DIFFERENCES = (("towers", "popularity"), ("towers", "context"))


class RetrievalProtocol(BaseModel):
    """How metrics of retrieval were measured; without it they mean nothing.

    Attributes:
        split: where the queries are from.
        queries: how many there are, of `clicks` that the split has.
        repeated: clicks besides, which are not asked for, because the user is known to
            have clicked the ad.
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
    repeated: int = 0
    clicks: int
    seed: int
    candidates: str = "all ads of the catalog, of any split"
    catalog: int
    filtered: str = NOTHING_LEFT_OUT
    ties: str = (
        "count against the clicked ad; in lists they stand by place in the catalog"
    )
    scores: str = "double precision, rounded to the 24 bits of a float32"
    cuts: tuple[int, ...]
    recall: str = "hits / min(K, relevant ads)"
    popularity: str = "mean share of the training impressions of the ads in the lists"
    deciles: str = "of the training impressions' mass, 1: the most shown ads"
    seen_ads: str = "an ad with at least one impression in training"
    bootstrap: str = f"percentiles of {RESAMPLES} draws of the queries, not of users"
    level: float = LEVEL
    context: dict[str, float | int | None]


@dataclass(frozen=True)
class Judged:
    """Per-query metrics of one method that orders the ads, and its lists."""

    values: PerQuery
    lists: Int64s


def retrieval_metrics(
    results: Mapping[str, SearchResult],
    clicked: Int64s,
    impressions: Int64s,
    seed: int,
) -> dict[str, Any]:
    """Judge all methods: on all queries, on seen and unseen ads, and by decile.

    Args:
        results: what each method found for the same queries.
        clicked: (Q,) positions in the catalog.
        impressions: (N,) of each ad in training.
        seed: of the bootstrap.

    Returns:
        Group -> method -> metrics, each with its `intervals`; group -> `differences` ->
        pair of methods -> recall and MRR, paired query by query; `deciles` -> 1 to 10
        -> method -> recall and MRR.
    """
    share = impressions / max(int(impressions.sum()), 1)
    cuts = cuts_of(len(impressions))
    judged = {
        name: _judge(result, share, clicked, cuts) for name, result in results.items()
    }
    # Ads that training never showed are judged apart: a mean over all would hide that
    # a model knows nothing of them.
    decile = popularity_deciles(impressions)[clicked]
    is_seen = impressions[clicked] > 0
    groups = {"all": np.ones_like(is_seen), "seen_ads": is_seen, "unseen_ads": ~is_seen}
    metrics: dict[str, Any] = {
        name: _group(judged, kept, cuts, len(impressions), seed)
        for name, kept in groups.items()
        if kept.any()
    }
    metrics["deciles"] = {
        str(d): {
            name: _recalls(method, decile == d, seed) for name, method in judged.items()
        }
        for d in range(1, DECILES + 1)
        if (decile == d).any()
    }
    return metrics


def _judge(
    result: SearchResult, share: Float64s, clicked: Int64s, cuts: tuple[int, ...]
) -> Judged:
    values = one_relevant(result.ranks, cuts) | popularity(result.lists, share, cuts)
    return Judged(values | {CLICKED: share[clicked]}, result.lists)


def _group(
    judged: Mapping[str, Judged],
    kept: Any,
    cuts: tuple[int, ...],
    catalog: int,
    seed: int,
) -> dict[str, Any]:
    """Compute the metrics of some queries for every method, and their differences."""
    # The same draws for all methods: a query that is hard for both cancels out of the
    # interval of their difference.
    draws = {name: _draws(method, kept, seed) for name, method in judged.items()}
    metrics: dict[str, Any] = {}
    for name, method in judged.items():
        means = {key: value[kept].mean() for key, value in method.values.items()}
        figures = _with_lift(means, cuts) | coverage(method.lists[kept], cuts, catalog)
        spread = {k: interval(v) for k, v in _with_lift(draws[name], cuts).items()}
        metrics[name] = _plain(figures) | {"intervals": _plain(spread)}
        metrics[name]["clicks"] = int(kept.sum())
    pairs = [pair for pair in DIFFERENCES if set(pair) <= set(judged)]
    metrics["differences"] = {
        f"{one} - {other}": _difference(judged, draws, kept, one, other)
        for one, other in pairs
    }
    return metrics


def _draws(method: Judged, kept: Any, seed: int) -> PerQuery:
    """Resample the mean of each metric, (resamples,) each."""
    values = np.stack([value[kept] for value in method.values.values()], axis=1)
    return dict(zip(method.values, resampled_means(values, seed).T, strict=True))


def _with_lift(means: Mapping[str, Any], cuts: tuple[int, ...]) -> dict[str, Any]:
    """Add how much more popular the listed ads are than the clicked ones.

    Popularity lift: Abdollahpouri et al., RecSys 2020. It is not defined if no
    clicked ad was shown in training.
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
    """Compare two methods query by query, in recall and MRR."""
    names = _short(judged[one])
    gains = {n: judged[one].values[n] - judged[other].values[n] for n in names}
    spread = {n: interval(draws[one][n] - draws[other][n]) for n in names}
    return _plain({n: gain[kept].mean() for n, gain in gains.items()}) | {
        "intervals": _plain(spread)
    }


def _recalls(method: Judged, kept: Any, seed: int) -> dict[str, Any]:
    """Compute recall and MRR alone of some queries."""
    names = _short(method)
    values = np.stack([method.values[name][kept] for name in names], axis=1)
    spread = interval(resampled_means(values, seed)).T
    return _plain(dict(zip(names, values.mean(axis=0), strict=True))) | {
        "clicks": len(values),
        "intervals": _plain(dict(zip(names, spread, strict=True))),
    }


def _short(method: Judged) -> list[str]:
    """Name recall at every cut, and MRR."""
    return [n for n in method.values if n.startswith("recall@") or n == "mrr"]


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Turn arrays and numpy's numbers into what JSON can hold."""
    return {name: np.asarray(value).tolist() for name, value in figures.items()}
