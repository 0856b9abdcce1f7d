"""The recommenders of the literature by name, and the settings that are tried for each.

Settings are chosen by NDCG@10 on validation clicks, of a model that was fitted on the
training clicks. With the best of them the model is fitted again on both, and judged on
the test clicks once.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from scipy.sparse import csr_matrix

from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.classics.factors import fit_als, fit_bpr
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.lightgcn import LightGCNSettings, fit_lightgcn
from torchrec_adrec.evaluation.classics.neighbours import fit_ease, fit_item_knn
from torchrec_adrec.evaluation.classics.popular import (
    PopularWhereNothingIsKnown,
    fit_popularity,
    fit_recent_popularity,
)
from torchrec_adrec.evaluation.classics.protocol import (
    HeldOut,
    NewUsersError,
    RankingProtocol,
    Scorer,
    can_draw,
    cold_start,
    judge,
)

log = logging.getLogger(__name__)
CHOSEN_BY = "ndcg@10"
COLD_LENGTHS = [0, 3, 5, 10, 20]
COLD_USERS = 10_000  # each length is one more pass over all ads
COLD_METRICS = ("hr@10", "ndcg@10")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One recommender.

    Attributes:
        fit: makes a scorer of clicks (U, N), settings and a seed.
        grid: the settings that are tried.
        needs_time: whether the clicks must be in time order.
    """

    fit: Callable[[csr_matrix, Settings, int], Scorer]
    grid: tuple[Settings, ...] = ({},)
    needs_time: bool = False


def _lightgcn(clicks: csr_matrix, settings: Settings, seed: int) -> Scorer:
    return fit_lightgcn(clicks, LightGCNSettings(**settings), seed)


METHODS: dict[str, Method] = {
    "popularity": Method(lambda clicks, _, seed: fit_popularity(clicks)),
    "recent popularity": Method(
        lambda clicks, s, seed: fit_recent_popularity(clicks, **s),
        tuple({"share": share} for share in (0.05, 0.1, 0.2, 0.5)),
        needs_time=True,
    ),
    "item_knn": Method(
        lambda clicks, s, seed: fit_item_knn(clicks, **s),
        tuple(
            {"neighbours": k, "shrink": s}
            for k in (50, 200, 1000)
            for s in (0, 20, 100)
        ),
    ),
    "ease": Method(
        lambda clicks, s, seed: fit_ease(clicks, **s),
        tuple({"l2": l2} for l2 in (30.0, 100.0, 300.0, 1000.0)),
    ),
    "als": Method(
        lambda clicks, s, seed: fit_als(clicks, **s, iterations=15, seed=seed),
        tuple(
            {"factors": 128, "l2": l2, "confidence": c}
            for c in (3.0, 10.0, 40.0)
            for l2 in (0.1, 3.0)
        ),
    ),
    # What overfits MovieLens 1M has hardly begun to learn Amazon Beauty.
    "bpr": Method(
        lambda clicks, s, seed: fit_bpr(clicks, **s, seed=seed),
        tuple(
            {"factors": 64, "rate": 0.05, "l2": l2, "iterations": n}
            for n in (10, 100, 500)
            for l2 in (0.001, 0.01)
        ),
    ),
    "lightgcn": Method(
        _lightgcn, tuple({"temperature": t, "epochs": 15} for t in (0.1, 0.2))
    ),
}


def run_method(
    name: str,
    data: Interactions,
    seed: int = 0,
    tuning_users: int = 10_000,
    grid: tuple[Settings, ...] | None = None,
    most_users: int | None = None,
) -> dict[str, Any]:
    """Choose a method's settings, fit it, and judge it by every protocol.

    Args:
        name: of `METHODS`.
        data: the clicks.
        seed: of the method; the draws of users and negatives are always the same.
        tuning_users: the settings are judged on so many users at most.
        grid: replaces the method's own.
        most_users: test users that are judged at most, drawn; None: all.

    Returns:
        `settings`, `tried`, `at_an_end` (see there), `full` and `sampled` (as
        `Judged.to_json`; the latter only where every user has not clicked enough ads to
        draw from), `cold_start` (means by the length of the history), and the seconds
        that it took.

    Raises:
        ConfigError: there is no such method, or the clicks are in no time order that it
            needs.
    """
    method = _method(name, data)
    began = time.perf_counter()
    tried: list[dict[str, Any]] = []
    choices = grid or method.grid
    for settings in choices if len(choices) > 1 else ():
        scorer = fit(name, settings, data, "valid", seed)
        value = value_on_valid(scorer, data, tuning_users)
        log.info("%s: %s on valid %.4f with %s", name, CHOSEN_BY, value, dict(settings))
        tried.append({"settings": dict(settings), CHOSEN_BY: value})
    best = max(tried, key=lambda t: t[CHOSEN_BY])["settings"] if tried else choices[0]
    ends = at_an_end(best, choices)
    if ends:
        log.warning("%s: the best %s is the last that was tried", name, ", ".join(ends))
    scorer = fit(name, best, data, "test", seed)
    return {
        "settings": dict(best),
        "tried": tried,
        "at_an_end": ends,
        **judged(scorer, data, RankingProtocol(most_users=most_users)),
        "seconds": time.perf_counter() - began,
    }


def fit(
    name: str, settings: Settings, data: Interactions, split: HeldOut, seed: int
) -> Scorer:
    """Fit a method on all clicks before a held-out split.

    Args:
        name: of `METHODS`.
        settings: of the method.
        data: the clicks.
        split: whose clicks it must not know.
        seed: of the method.
    """
    clicks = data.known(split)
    scorer = METHODS[name].fit(clicks, settings, seed)
    return PopularWhereNothingIsKnown(scorer, fit_popularity(clicks))


def value_on_valid(scorer: Scorer, data: Interactions, users: int) -> float:
    """Return that by which settings are chosen, of so many users at most."""
    tuning = RankingProtocol(split="valid", most_users=users)
    return judge(scorer, data, tuning).means[CHOSEN_BY]


def at_an_end(best: Settings, choices: tuple[Settings, ...]) -> list[str]:
    """The settings whose best value is the smallest or largest of three or more.

    A value beyond it may be better still, and the method is then worth more than its
    figures say.
    """
    tried = {name: {choice[name] for choice in choices} for name in best}
    return [
        name
        for name, values in tried.items()
        if len(values) > 2 and best[name] in (min(values), max(values))
    ]


def judged(
    scorer: Scorer, data: Interactions, protocol: RankingProtocol
) -> dict[str, Any]:
    """Judge a scorer on the test clicks by both protocols, and on short histories.

    The latter are left out of a scorer that cannot answer new users.

    Args:
        scorer: fitted on all clicks before the test.
        data: the clicks.
        protocol: of full ranking.
    """
    figures: dict[str, Any] = {"full": judge(scorer, data, protocol).to_json()}
    sampled = replace(protocol, candidates="sampled")
    if can_draw(data, sampled):
        figures["sampled"] = judge(scorer, data, sampled).to_json()
    else:
        log.warning("%d ads are too few to draw from: no sampled table", len(data.ids))
    fewer = min(protocol.most_users or COLD_USERS, COLD_USERS)
    of_some = replace(protocol, most_users=fewer)
    try:
        cold = cold_start(scorer, data, of_some, COLD_LENGTHS)
    except NewUsersError as error:
        log.warning("no figures by the length of the history: %s", error)
        return figures
    figures["cold_start"] = {
        length: {name: j.means[name] for name in COLD_METRICS}
        for length, j in cold.items()
    }
    return figures


def _method(name: str, data: Interactions) -> Method:
    if name not in METHODS:
        raise ConfigError(f"no method {name!r}; expected some of {', '.join(METHODS)}")
    if METHODS[name].needs_time and not data.in_time_order:
        raise ConfigError(
            f"{name}: the rows of these data are in no order of time that holds for all"
            " users; sort the raw rows by time and prepare them again, or leave it out"
        )
    return METHODS[name]
