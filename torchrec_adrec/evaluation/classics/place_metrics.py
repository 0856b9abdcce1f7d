"""HR, Recall, NDCG and MRR of each user, of the places of the held-out ads.

Shape letters: B users, N ads, P held-out clicks.
"""

import numpy as np
import torch
from torch import Tensor

from torchrec_adrec.arrays import Float64s, Int64s


def full_ranks(scores: Tensor, target: Tensor, row: Tensor, longest: int) -> Tensor:
    """Rank held-out ads among all ads, (P,); K + 1 stands for every place below K.

    A place is the number of ads that score at least as much. It is counted among the
    K + 1 best alone: if fewer than all of these do, no other ad does.

    Args:
        scores: (B, N), -inf where an ad is no candidate.
        target: (P,) score of each held-out ad.
        row: (P,) its user's row.
        longest: K.
    """
    best = torch.topk(scores, min(longest + 1, scores.shape[1]), dim=1).values
    ranks = (best[row] >= target[:, None]).sum(dim=1)
    # A held-out ad without any score is behind all others.
    return torch.where(target == -np.inf, longest + 1, ranks)


def full_metrics(
    ranks: Int64s, row: Int64s, users: int, cuts: tuple[int, ...]
) -> dict[str, Float64s]:
    """Compute the metrics of each user of the places of all held-out ads, (B,) each.

    Recall@K is divided by the number of held-out ads, as the LightGCN split is reported
    (He et al., SIGIR 2020); NDCG@K by that of the best possible list of K; MRR@K is the
    reciprocal place of the first held-out ad, 0 below place K.

    Args:
        ranks: (P,) places, 1 is the best.
        row: (P,) the user of each.
        users: B.
        cuts: the K.
    """
    relevant = np.bincount(row, minlength=users)
    best = np.append(0, np.cumsum(1 / np.log2(2 + np.arange(max(cuts)))))
    metrics: dict[str, Float64s] = {}
    for k in cuts:
        hit = (ranks <= k).astype(np.float64)
        hits = np.bincount(row, hit, users)
        gain = np.bincount(row, hit / np.log2(1 + ranks), users)
        reciprocal = np.zeros(users)
        np.maximum.at(reciprocal, row, hit / ranks)
        metrics |= {f"hr@{k}": (hits > 0).astype(np.float64)}
        metrics |= {f"recall@{k}": hits / relevant}
        metrics |= {f"ndcg@{k}": gain / best[np.minimum(relevant, k)]}
        metrics |= {f"mrr@{k}": reciprocal}
    return metrics


def sampled_metrics(
    ranks: Int64s, row: Int64s, users: int, cuts: tuple[int, ...]
) -> dict[str, Float64s]:
    """Compute the same where each held-out ad is a question of its own.

    A user's value is the mean over his questions, of which each has one right answer.

    Args:
        ranks: (P,) places, 1 is the best.
        row: (P,) the user of each.
        users: B.
        cuts: the K.
    """
    questions = np.arange(len(ranks))
    single = full_metrics(ranks, questions, len(ranks), cuts)
    count = np.bincount(row, minlength=users)
    return {n: np.bincount(row, v, users) / count for n, v in single.items()}
