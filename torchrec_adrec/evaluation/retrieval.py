"""Retrieval judged exactly: every clicked ad against the whole catalog.

Protocol, stored with every figure: held-out clicks; candidates are all ads of the
catalog; nothing is filtered; of equal scores the clicked ad counts as the last.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PROTOCOL = (
    "held-out clicks against the full catalog, no filter, "
    "ties count against the clicked ad"
)
CUTS = (10, 100, 500)
CHUNK = 256

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def ranks_by_score(users: Floats, ads: Floats, clicked: Ints) -> Ints:
    """The place (from 1) of each clicked ad among all ads by inner product.

    Args:
        users: (N, D).
        ads: (M, D).
        clicked: (N,) positions in `ads`.
    """
    ranks = np.empty(len(users), dtype=np.int64)
    for first in range(0, len(users), CHUNK):
        at = slice(first, first + CHUNK)
        scores = users[at] @ ads.T
        own = np.take_along_axis(scores, clicked[at, None], axis=1)
        ranks[at] = (~(scores < own)).sum(axis=1)  # a NaN counts against
    return ranks


def ranks_by_popularity(impressions: Ints, clicked: Ints) -> Ints:
    """The place of each clicked ad when every user gets the most shown ads first."""
    rising = np.sort(impressions)
    return len(impressions) - np.searchsorted(rising, impressions[clicked], side="left")


def recall(ranks: Ints, catalog: int) -> dict[str, Any]:
    """Recall@K of one clicked ad a row, and MRR; a K above the catalog is left out."""
    cuts = {f"recall@{k}": float((ranks <= k).mean()) for k in CUTS if k < catalog}
    return {**cuts, "mrr": float((1 / ranks).mean()), "clicks": len(ranks)}


def retrieval_metrics(
    users: Floats, ads: Floats, clicked: Ints, impressions: Ints
) -> dict[str, Any]:
    """Towers beside popularity, for ads that training showed and for new ones."""
    catalog = len(ads)
    towers = ranks_by_score(users, ads, clicked)
    popular = ranks_by_popularity(impressions, clicked)
    seen = impressions[clicked] > 0
    rows = {"all": np.ones_like(seen), "seen_ads": seen, "unseen_ads": ~seen}
    return {
        "protocol": PROTOCOL,
        "catalog": catalog,
        **{
            name: {
                "towers": recall(towers[kept], catalog),
                "popularity": recall(popular[kept], catalog),
            }
            for name, kept in rows.items()
            if kept.any()
        },
    }
