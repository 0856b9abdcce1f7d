"""Metrics of each user's own impressions, in the order of their predictions.

A ranker orders the ads of one user. An AUC over all rows also rewards it for knowing
which users click more, which orders nobody's ads; these metrics do not.

Shape letters: B rows, U users of both classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.schema import NO_USER

CUTS = (5, 10)


@dataclass(frozen=True)
class UserLists:
    """One value per metric and user, of the users that have both classes.

    With one class alone a user's order is neither right nor wrong: its AUC is not
    defined, and every list is perfect or empty.

    Attributes:
        metrics: `auc`, `mrr`, and `ndcg@K` and `map@K` for each K, (U,) each.
        users: (U,) the keys, rising.
        rows: (U,) impressions.
        dropped_users: how many have one class alone.
        dropped_rows: their impressions.
        rows_without_user: impressions whose user is missing.
    """

    metrics: dict[str, Float64s]
    users: Int64s
    rows: Int64s
    dropped_users: int
    dropped_rows: int
    rows_without_user: int

    @property
    def grouped_auc(self) -> float:
        """The mean of the users' AUC by impressions (Zhu et al., KDD 2018), or NaN."""
        if not len(self.rows):
            return float("nan")
        return float(np.average(self.metrics["auc"], weights=self.rows))


def user_lists(
    predicted: Float64s, label: Float64s, user: Int64s, cuts: Sequence[int] = CUTS
) -> UserLists:
    """Judge the order of each user's impressions.

    Equal predictions count half in the AUC, share their places' mean gain in NDCG
    (McSherry and Najork, ECIR 2008), and stand at the last of their places in MAP and
    MRR, so that equal scores for all are worth nothing.

    Args:
        predicted: (B,), higher is earlier in the list.
        label: (B,) 0 or 1.
        user: (B,) keys; `NO_USER` where there is none.
        cuts: the K of NDCG@K and MAP@K.
    """
    frame = pl.DataFrame({"user": user, "score": predicted, "label": label})
    known = frame.filter(pl.col("user") != NO_USER)
    clicks, rows = pl.col("label").sum().over("user"), pl.len().over("user")
    both = known.filter((clicks > 0) & (clicks < rows))
    users, code = np.unique(both["user"].to_numpy(), return_inverse=True)
    return UserLists(
        _per_user(_places(both), code, len(users), cuts),
        users,
        np.bincount(code, minlength=len(users)),
        known["user"].n_unique() - len(users),
        len(known) - len(both),
        len(frame) - len(known),
    )


def _places(rows: pl.DataFrame) -> dict[str, Float64s]:
    """Find the place of each row in its user's list, and what stands before it.

    Returns:
        `label`; `rank`, the place from the lowest score, of equal scores the mean;
        `last`, the place from the highest score, of equal scores the last; `tied`, the
        number of equal scores; `hits`, the clicks down to place `last`. (B,) each.
    """
    score, block = pl.col("score"), ("user", "score")
    places = (
        rows.with_row_index("row")
        .sort("user", "score", descending=[False, True])
        .with_columns(
            rank=score.rank("average").over("user"),
            last=score.rank("max", descending=True).over("user"),
            tied=pl.len().over(block),
            hits=pl.col("label").cum_sum().over("user"),
        )
        .with_columns(hits=pl.col("hits").max().over(block))
        .sort("row")
    )
    names = ("label", "rank", "last", "tied", "hits")
    return {name: places[name].cast(pl.Float64).to_numpy() for name in names}


def _per_user(
    places: dict[str, Float64s], code: Int64s, users: int, cuts: Sequence[int]
) -> dict[str, Float64s]:
    """Compute every metric of every user, (U,) each.

    Args:
        places: of `_places`.
        code: (B,) number of the user of each row.
        users: U.
        cuts: the K.
    """

    def total(values: Float64s) -> Float64s:
        sums = np.bincount(code, weights=values, minlength=users)
        return np.asarray(sums, dtype=np.float64)

    label, last, tied = places["label"], places["last"], places["tied"]
    clicks, rows = total(label), total(np.ones_like(label))
    # Mann and Whitney: the sum of the clicks' ranks, less the least that it can be.
    above = total(label * places["rank"]) - clicks * (clicks + 1) / 2
    reciprocal = np.zeros(users)
    np.maximum.at(reciprocal, code, label / last)
    metrics = {"auc": above / (clicks * (rows - clicks)), "mrr": reciprocal}
    for k in cuts:
        # A block of equal scores shares the gains of its places, each within K.
        gain = label * (_discounts(last, k) - _discounts(last - tied, k)) / tied
        precision = np.where(last <= k, label * places["hits"] / last, 0)
        metrics[f"ndcg@{k}"] = total(gain) / _discounts(clicks, k)
        metrics[f"map@{k}"] = total(precision) / np.minimum(clicks, k)
    return metrics


def _discounts(place: Float64s, k: int) -> Float64s:
    """Sum 1 / log2(1 + i) over the places i up to this one, and up to K."""
    sums = np.append(0, np.cumsum(1 / np.log2(2 + np.arange(k))))
    return np.asarray(sums[np.minimum(place, k).astype(np.int64)])
