"""Metrics as functions of sums over rows, so that resampling them costs one product.

Shape letters: B rows, C clusters of rows (users), F terms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.evaluation.bootstrap import interval, resampled_means
from torchrec_adrec.evaluation.calibration_metrics import CLIP
from torchrec_adrec.evaluation.user_lists import UserLists

# Sums of terms over some rows -> a metric. Arrays: one entry for each resample.
Statistic = Callable[[Mapping[str, Float64s]], Float64s]


@dataclass(frozen=True)
class Terms:
    """Metrics as functions of sums over rows, so that resamples cost one product.

    Attributes:
        rows: (B,) each.
        statistics: by the name of the metric.
    """

    rows: dict[str, Float64s]
    statistics: dict[str, Statistic]

    def of_sums(self, sums: Mapping[str, Float64s]) -> dict[str, Float64s]:
        """Compute every metric of sums over some rows; NaN where it has no value."""
        with np.errstate(all="ignore"):
            return {name: of(sums) for name, of in self.statistics.items()}

    def figures(self) -> dict[str, float]:
        """Compute every metric of all rows."""
        sums = {name: np.asarray(x.sum()) for name, x in self.rows.items()}
        return {name: float(x) for name, x in self.of_sums(sums).items()}

    def intervals(self, clusters: Int64s, seed: int) -> dict[str, list[float]]:
        """Find the 95% interval of each metric over resampled clusters.

        Args:
            clusters: (B,) from 0.
            seed: of the draws.
        """
        draws = self.draws(clusters, seed)
        return {name: finite_interval(values) for name, values in draws.items()}

    def draws(self, clusters: Int64s, seed: int) -> dict[str, Float64s]:
        """Compute every metric of resampled clusters, (resamples,) each.

        Of equal clusters and seeds the draws are equal, so differences are paired.

        Args:
            clusters: (B,) from 0.
            seed: of the draws.
        """
        sums = np.stack([np.bincount(clusters, weights=x) for x in self.rows.values()])
        count = sums.shape[1]
        means = resampled_means(sums.T.astype(np.float64), seed)
        return self.of_sums(dict(zip(self.rows, means.T * count, strict=True)))


def finite_interval(draws: Float64s) -> list[float]:
    """Return the ends of the interval; NaN where no draw has a value."""
    # A draw of few users may hold one class alone.
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return [float("nan")] * 2
    return [float(end) for end in interval(finite)]


def click_terms(predicted: Float64s, label: Float64s) -> Terms:
    """Return the terms of AUC, log loss, normalised entropy and ratio."""
    clicked = label == 1
    ones, zeros = np.sort(predicted[clicked]), np.sort(predicted[~clicked])
    # The share of the other class that a row is ranked right against, equals counting
    # half: their mean is the AUC, and sums of them its first-order term (Hajek), so
    # that no resample has to be sorted anew.
    above = np.where(clicked, _share_below(zeros, predicted), 0)
    below = np.where(clicked, 0, 1 - _share_below(ones, predicted))
    auc = above[clicked].mean() if len(ones) and len(zeros) else np.nan
    p = np.clip(predicted, CLIP, 1 - CLIP)
    loss = -np.where(clicked, np.log(p), np.log1p(-p))
    one = np.ones_like(label)
    rows = {"rows": one, "label": label, "predicted": predicted, "loss": loss}
    rows |= {"above": above, "below": below}

    def entropy(s: Mapping[str, Float64s]) -> Float64s:
        rate = s["label"] / s["rows"]
        return -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))

    return Terms(
        rows,
        {
            "auc": lambda s: (
                s["above"] / s["label"] + s["below"] / (s["rows"] - s["label"]) - auc
            ),
            "log_loss": lambda s: s["loss"] / s["rows"],
            "normalized_entropy": lambda s: s["loss"] / s["rows"] / entropy(s),
            "calibration": lambda s: s["predicted"] / s["label"],
        },
    )


def _share_below(values: Float64s, predicted: Float64s) -> Float64s:
    """Compute the share of sorted values below each prediction; equal ones half."""
    sides = [np.searchsorted(values, predicted, side) for side in ("left", "right")]
    return np.asarray((sides[0] + sides[1]) / 2 / max(len(values), 1))


def add_lists(terms: Terms, lists: UserLists, user: Int64s) -> dict[str, float]:
    """Add the means over users to the terms, and return them as figures.

    The grouped AUC is a mean by impressions, the others count every user once.
    """
    # A user's value is put on its first row: sums over clusters then hold it once.
    first = _first_rows(user, lists.users)

    def on_rows(values: Float64s) -> Float64s:
        spread = np.zeros(len(user))
        spread[first] = values
        return spread

    rows = lists.rows.astype(np.float64)
    names = [name for name in lists.metrics if name != "auc"]
    terms.rows["users"] = on_rows(np.ones(len(rows)))
    terms.rows["user_rows"] = on_rows(rows)
    terms.rows["grouped_auc"] = on_rows(rows * lists.metrics["auc"])
    terms.statistics["grouped_auc"] = lambda s: s["grouped_auc"] / s["user_rows"]
    for name in names:
        terms.rows[name] = on_rows(lists.metrics[name])
        terms.statistics[name] = lambda s, name=name: s[name] / s["users"]  # type: ignore[misc]
    means = {name: _mean(lists.metrics[name]) for name in names}
    return {"grouped_auc": lists.grouped_auc} | means


def _first_rows(user: Int64s, users: Int64s) -> Int64s:
    """Find the first row of each of some users, (U,)."""
    distinct, first = np.unique(user, return_index=True)
    return np.asarray(first[np.searchsorted(distinct, users)], dtype=np.int64)


def _mean(values: Float64s) -> float:
    return float(values.mean()) if len(values) else float("nan")
