"""What a ranked list is worth, one value a query: docs/evaluation.md has the formulas.

Shape letters: Q queries, K length of the lists, N ads.
"""

from collections.abc import Sequence

import numpy as np

from torchrec_adrec.arrays import Float64s, Int64s

CUTS = (10, 100, 500)
DECILES = 10

PerQuery = dict[str, Float64s]


def cuts_of(catalog: int) -> tuple[int, ...]:
    """The K that mean something: a list of the whole catalog holds every ad."""
    return tuple(k for k in CUTS if k < catalog)


def one_relevant(ranks: Int64s, cuts: Sequence[int]) -> PerQuery:
    """Figures of queries with one relevant ad, from its rank in the whole catalog.

    Args:
        ranks: (Q,), 1 is the best.
    """
    found: PerQuery = {"mrr": np.asarray(1 / ranks)}
    for k in cuts:
        hit = (ranks <= k).astype(np.float64)
        found |= {f"recall@{k}": hit, f"hit_rate@{k}": hit}
        found[f"ndcg@{k}"] = hit / np.log2(1 + ranks)
    return found


def many_relevant(
    lists: Int64s, relevant: Int64s, cuts: Sequence[int], catalog: int
) -> PerQuery:
    """Figures of queries with a set of relevant ads each, all of them worth the same.

    Recall@K is divided by min(K, size of the set): a list without a fault has 1. The
    reciprocal rank is that of the first hit in the list, 0 without one.

    Args:
        lists: (Q, K) places, best first, K at least the largest cut; -1: none.
        relevant: (Q, R) places, none twice in a row.
    """
    row = np.arange(len(lists))[:, None] * catalog
    hits = np.isin(lists + row, relevant + row) & (lists >= 0)
    gain = hits / np.log2(2 + np.arange(lists.shape[1]))
    best = np.cumsum(1 / np.log2(2 + np.arange(relevant.shape[1])))
    first: Float64s = hits.any(axis=1) / (1.0 + hits.argmax(axis=1))
    found: PerQuery = {"mrr": first}
    for k in cuts:
        most = min(k, relevant.shape[1])
        found[f"recall@{k}"] = hits[:, :k].sum(axis=1) / most
        found[f"hit_rate@{k}"] = (hits[:, :k].sum(axis=1) > 0).astype(np.float64)
        found[f"ndcg@{k}"] = gain[:, :k].sum(axis=1) / best[most - 1]
    return found


def popularity(lists: Int64s, share: Float64s, cuts: Sequence[int]) -> PerQuery:
    """Mean share of the training impressions of the ads of each list.

    Its mean over queries is the average recommendation popularity of Yin et al., VLDB
    2012 (so named by Abdollahpouri et al., FLAIRS 2019).

    Args:
        share: (N,) of each ad.
    """
    there = lists >= 0
    of_ads = np.where(there, share[lists], 0.0)
    return {
        f"popularity@{k}": of_ads[:, :k].sum(axis=1)
        / np.maximum(there[:, :k].sum(axis=1), 1)
        for k in cuts
    }


def coverage(lists: Int64s, cuts: Sequence[int], catalog: int) -> dict[str, float]:
    """Share of the catalog that stands in at least one list.

    It grows with the number of lists, so it has no interval by resampling them. Ge et
    al., RecSys 2010.
    """
    found = {}
    for k in cuts:
        shown = np.unique(lists[:, :k])
        found[f"coverage@{k}"] = float((shown >= 0).sum() / catalog)
    return found


def popularity_deciles(impressions: Int64s) -> Int64s:
    """The decile of the training impressions that each ad falls in, (N,).

    1: the most shown ads, which have the first tenth of all impressions, to 10; equal
    numbers of impressions are in the same; 11, the cold ones, had none. An ad stands
    where the mass of those shown more often ends: one with a quarter of all leaves
    deciles 2 and 3 empty.
    """
    levels, at = np.unique(impressions, return_inverse=True)
    mass = levels * np.bincount(at)
    above = mass.sum() - np.cumsum(mass)
    total = max(int(mass.sum()), 1)
    decile = np.where(levels > 0, DECILES * above // total, DECILES)
    return np.asarray(1 + decile[at], dtype=np.int64)
