"""The best ads of one scorer in the order of another.

A funnel's two steps in the terms of the papers: one scorer retrieves K ads, and another
(LightGCN) orders these, alone or together with the first.

Shape letters: B users, N ads, K ads that are ordered again.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.methods import (
    CHOSEN_BY,
    judged,
    value_on_valid,
)
from torchrec_adrec.evaluation.classics.protocol import (
    HeldOut,
    RankingProtocol,
    Scorer,
)

log = logging.getLogger(__name__)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
FitBefore = Callable[[HeldOut], Scorer]
"""Makes a scorer that knows all clicks before a held-out split."""


@dataclass(frozen=True)
class Reranked:
    """The K best ads of one scorer, ordered by a weighted sum of two scores.

    Scores of two scorers have different scales, so each is standardised over the K ads
    of a user. All other ads stand behind these, in the order of the first scorer.

    Attributes:
        first: retrieves.
        second: orders.
        k: K; ads that the user is known to have clicked are none of them.
        weight: of the second scorer, from 0 (the first alone) to 1.
    """

    first: Scorer
    second: Scorer
    k: int
    weight: float

    def scores(self, history: csr_matrix, users: Int64s, is_new: bool) -> Float32s:
        """See `Scorer`."""
        first, second = (
            torch.from_numpy(scorer.scores(history, users, is_new))
            for scorer in (self.first, self.second)
        )
        row = np.repeat(np.arange(len(users)), np.diff(history.indptr))
        first[torch.from_numpy(row), torch.from_numpy(history.indices).long()] = -np.inf
        best = torch.topk(first, min(self.k, first.shape[1]), dim=1)
        # Of a user with fewer ads than K, the last ones are those that he has clicked.
        chosen = best.values != -np.inf
        retrieved = standardised(best.values, chosen)
        ordered = standardised(second.gather(1, best.indices), chosen)
        sums = (1 - self.weight) * retrieved + self.weight * ordered
        lowest = torch.where(chosen, best.values, np.inf).amin(dim=1, keepdim=True)
        least = torch.where(chosen, sums, np.inf).amin(dim=1, keepdim=True)
        behind = first - lowest  # at most 0
        ahead = torch.where(chosen, 1 + sums - least, -np.inf)
        return behind.scatter_(1, best.indices, ahead).numpy()


def standardised(values: Tensor, chosen: Tensor) -> Tensor:
    """Scale each row (B, K) to mean 0 and deviation 1 over the chosen ones."""
    count = chosen.sum(dim=1, keepdim=True).clamp(min=1)
    mean = values.where(chosen, 0).sum(dim=1, keepdim=True) / count
    centred = (values - mean).where(chosen, 0)
    deviation = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=1e-12)


def run_reranked(
    first: FitBefore,
    second: FitBefore,
    data: Interactions,
    k: int,
    tuning_users: int = 10_000,
    most_users: int | None = None,
) -> dict[str, Any]:
    """Choose the weight on validation clicks, and judge the pair on the test clicks.

    Args:
        first: retrieves.
        second: orders.
        data: the clicks.
        k: K.
        tuning_users: the weights are judged on so many users at most.
        most_users: test users that are judged at most, drawn; None: all.

    Returns:
        What `run_method` does, but for the ends of the grid: a weight has none beyond.
    """
    began = time.perf_counter()
    pair = first("valid"), second("valid")
    tried: list[dict[str, Any]] = []
    for weight in WEIGHTS:
        value = value_on_valid(Reranked(*pair, k, weight), data, tuning_users)
        log.info("%s on valid %.4f with weight %.2f", CHOSEN_BY, value, weight)
        tried.append({"settings": {"k": k, "weight": weight}, CHOSEN_BY: value})
    best = max(tried, key=lambda t: t[CHOSEN_BY])["settings"]
    scorer = Reranked(first("test"), second("test"), k, best["weight"])
    return {
        "settings": best,
        "tried": tried,
        **judged(scorer, data, RankingProtocol(most_users=most_users)),
        "seconds": time.perf_counter() - began,
    }
