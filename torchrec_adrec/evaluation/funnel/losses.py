"""What a list of ads is worth, and at which stage of the funnel worth is lost.

One stage after the other is replaced by its ideal, from the last to the first:

    oracle   the best ads of all that may be shown
       |     tower loss: the best ads are not even among the first DEPTH of the towers
    deep     the best of the exact search's first DEPTH ads
       |     truncation loss: they are there, but the ranker gets CANDIDATES ads alone
    exact    the best of the exact search's first CANDIDATES ads
       |     index loss: the index returned other ads than the exact search
    index    the best of the ads that the index returned
       |     ranker loss: the ranker has put other ads in front
    funnel   the first ads as they are served

"The best" are those of the largest true worth. Each loss is the difference of two
neighbours, so the losses add up to what the funnel lacks of the oracle.

Shape letters: N ads of the catalog, E that may be shown, K candidates, D depth.
"""

from dataclasses import dataclass
from math import fsum

import numpy as np

from torchrec_adrec.arrays import Float32s, Float64s, Int64s

LEVELS = ("oracle", "deep", "exact", "index", "funnel")
LOSSES = {
    "tower": ("oracle", "deep"),
    "truncation": ("deep", "exact"),
    "index": ("exact", "index"),
    "ranker": ("index", "funnel"),
}
TOTAL = "total"
TIE = 1e-6  # of a score, or absolute if it is below 1


@dataclass(frozen=True)
class Reached:
    """The ads that each stage leaves for one request, as rows of the catalog.

    Attributes:
        eligible: (E,) that may be shown.
        deep: (D,) first of the exact search; it holds `exact`.
        exact: (K,) first of the exact search.
        ranked: (K,) that the index returned, in the ranker's order.
    """

    eligible: Int64s
    deep: Int64s
    exact: Int64s
    ranked: Int64s


def levels(worth: Float64s, reached: Reached, top: int) -> dict[str, float]:
    """Sum what the list of each level is worth.

    Args:
        worth: (N,) of each ad of the catalog.
        reached: by the stages.
        top: length of the lists.
    """
    best = {
        "oracle": reached.eligible,
        "deep": reached.deep,
        "exact": reached.exact,
        "index": reached.ranked,
    }
    sums = {
        name: sum_of(best_of(worth, rows, top), worth) for name, rows in best.items()
    }
    return sums | {"funnel": sum_of(reached.ranked[:top], worth)}


def best_of(worth: Float64s, rows: Int64s, top: int) -> Int64s:
    """Find the `top` rows of the largest worth, the best first; equal ones by row."""
    rows = np.sort(rows)
    return rows[np.argsort(-worth[rows], kind="stable")[:top]]


def sum_of(rows: Int64s, worth: Float64s) -> float:
    """Sum the worth of some ads."""
    # Rounded once, so that the order of the ads changes no digit: a perfect ranker's
    # loss is 0 and not almost 0.
    return fsum(worth[rows].tolist())


def losses(value: dict[str, Float64s]) -> dict[str, Float64s]:
    """Compute what each stage loses, and their total.

    Args:
        value: by level, of each request.
    """
    lost = {name: value[a] - value[b] for name, (a, b) in LOSSES.items()}
    total = value[LEVELS[0]] - value[LEVELS[-1]]
    difference = np.abs(sum(lost.values()) - total)
    assert (difference <= 1e-9 * np.maximum(1, np.abs(total))).all(), "a loss twice"
    return lost | {TOTAL: total}


def exact_first(
    scores: Float32s, eligible: Int64s, returned: Int64s, depth: int
) -> tuple[Int64s, Int64s]:
    """Find the first K and the first D ads by score; the K are as many as returned.

    Ads of equal scores are common (rare ads share the vector of the unknown id), and of
    those any will do. So of ads that tie for the last of the K places those that the
    index returned are taken, else its choice would look like a loss.

    Args:
        scores: (N,) the towers' of each ad.
        eligible: (E,) rows that may be shown.
        returned: (K,) rows that the index returned.
        depth: D, at least K and at most E.

    Returns:
        Rows of the catalog, (K,) and (D,); the second begins with the first.
    """
    k, of_eligible = len(returned), scores[eligible]
    threshold = -np.partition(-of_eligible, k - 1)[k - 1]
    tolerance = TIE * max(abs(float(threshold)), 1)
    is_returned = np.isin(eligible, returned)
    # 0 is surely among the first K, 1 and 2 tie with the last of them, 3 is not.
    group = np.where(is_returned, 1, 2)
    group[of_eligible > threshold + tolerance] = 0
    group[of_eligible < threshold - tolerance] = 3
    order = np.lexsort((eligible, -of_eligible, group))
    exact = eligible[order[:k]]
    rest = order[k:]
    further = rest[np.argsort(-of_eligible[rest], kind="stable")[: depth - k]]
    return exact, np.concatenate([exact, eligible[further]])
