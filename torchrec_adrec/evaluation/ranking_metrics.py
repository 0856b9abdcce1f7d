"""Metrics of ranked lists, one value per query.

docs/evaluation.md has the formulas.

Shape letters: Q queries, K length of the lists, N ads.
"""

from collections.abc import Sequence

import numpy as np

from torchrec_adrec.arrays import Float64s, Int64s

CUTS = (10, 100, 500)
DECILES = 10

PerQuery = dict[str, Float64s]


def cuts_of(catalog: int) -> tuple[int, ...]:
    """Choose the K below the catalog's size: a list of all ads holds every ad."""
    return tuple(k for k in CUTS if k < catalog)


def one_relevant(ranks: Int64s, cuts: Sequence[int]) -> PerQuery:
    """Judge queries with one relevant ad, by its rank in the whole catalog.

    Args:
        ranks: (Q,), 1 is the best.
        cuts: the K of Recall@K and the others.
    """
    metrics: PerQuery = {"mrr": np.asarray(1 / ranks)}
    for k in cuts:
        hit = (ranks <= k).astype(np.float64)
        metrics |= {f"recall@{k}": hit, f"hit_rate@{k}": hit}
        metrics[f"ndcg@{k}"] = hit / np.log2(1 + ranks)
    return metrics


def many_relevant(
    lists: Int64s, relevant: Int64s, cuts: Sequence[int], catalog: int
) -> PerQuery:
    """Judge queries with a set of relevant ads each, all of equal worth.

    Recall@K is divided by min(K, size of the set), so that a perfect list has 1. The
    reciprocal rank is that of the first hit in the list, 0 without one.

    Args:
        lists: (Q, K) positions in the catalog, best first, K at least the largest cut;
            -1: none.
        relevant: (Q, R) positions, none twice in a row.
        cuts: the K of Recall@K and the others.
        catalog: how many ads there are.
    """
    # Shifting each query's positions by its own multiple makes one set of all queries,
    # so that a single `isin` compares every list with its own relevant ads.
    row = np.arange(len(lists))[:, None] * catalog
    hits = np.isin(lists + row, relevant + row) & (lists >= 0)
    gain = hits / np.log2(2 + np.arange(lists.shape[1]))
    best = np.cumsum(1 / np.log2(2 + np.arange(relevant.shape[1])))
    reciprocal: Float64s = hits.any(axis=1) / (1.0 + hits.argmax(axis=1))
    metrics: PerQuery = {"mrr": reciprocal}
    for k in cuts:
        most = min(k, relevant.shape[1])
        metrics[f"recall@{k}"] = hits[:, :k].sum(axis=1) / most
        metrics[f"hit_rate@{k}"] = (hits[:, :k].sum(axis=1) > 0).astype(np.float64)
        metrics[f"ndcg@{k}"] = gain[:, :k].sum(axis=1) / best[most - 1]
    return metrics


def popularity(lists: Int64s, share: Float64s, cuts: Sequence[int]) -> PerQuery:
    """Compute the mean share of the training impressions of each list's ads.

    Its mean over queries is the average recommendation popularity of Yin et al., VLDB
    2012 (so named by Abdollahpouri et al., FLAIRS 2019).

    Args:
        lists: (Q, K) positions in the catalog; -1: none.
        share: (N,) of each ad.
        cuts: lengths of the lists that are judged.
    """
    present = lists >= 0
    of_ads = np.where(present, share[lists], 0.0)
    return {
        f"popularity@{k}": of_ads[:, :k].sum(axis=1)
        / np.maximum(present[:, :k].sum(axis=1), 1)
        for k in cuts
    }


def coverage(lists: Int64s, cuts: Sequence[int], catalog: int) -> dict[str, float]:
    """Compute the share of the catalog that is in at least one list.

    It grows with the number of lists, so it has no interval by resampling them. Ge et
    al., RecSys 2010.

    Args:
        lists: (Q, K) positions in the catalog; -1: none.
        cuts: lengths of the lists that are judged.
        catalog: how many ads there are.
    """
    shares = {}
    for k in cuts:
        listed = np.unique(lists[:, :k])
        shares[f"coverage@{k}"] = float((listed >= 0).sum() / catalog)
    return shares


def popularity_deciles(impressions: Int64s) -> Int64s:
    """Find the decile of the training impressions that each ad falls in, (N,).

    Decile 1 are the most shown ads, which have the first tenth of all impressions; 11
    are the cold ads, which had none. Ads with equal impressions are in the same decile.
    An ad's decile begins where the mass of those shown more often ends: an ad with a
    quarter of all impressions leaves deciles 2 and 3 empty.
    """
    # Counted in whole numbers: shares of a float would put an ad at a border on either
    # side by chance.
    levels, level = np.unique(impressions, return_inverse=True)
    mass = levels * np.bincount(level)
    above = mass.sum() - np.cumsum(mass)
    total = max(int(mass.sum()), 1)
    decile = np.where(levels > 0, DECILES * above // total, DECILES)
    return np.asarray(1 + decile[level], dtype=np.int64)
