"""Everything that is reported of one label's predictions on held-out rows.

`judge_label` returns what goes to `details` in metrics.json. docs/evaluation.md has the
definitions.

Shape letters: B rows, C clusters of rows (users), F terms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.evaluation.bootstrap import interval, resampled_means
from torchrec_adrec.evaluation.calibration_metrics import (
    BINS,
    CLIP,
    DECILES,
    binned,
    calibration_error,
    equal_mass,
    logits_of,
    recalibration,
)
from torchrec_adrec.evaluation.predict import SplitLogits
from torchrec_adrec.evaluation.row_keys import RowKeys
from torchrec_adrec.evaluation.user_lists import UserLists, user_lists
from torchrec_adrec.schema import LabelKind, Schema
from torchrec_adrec.tasks.calibration import Calibrations

Report = dict[str, Any]
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

    def intervals(self, clusters: Int64s, seed: int) -> dict[str, list[float]]:
        """Find the 95% interval of each metric over resampled clusters.

        Args:
            clusters: (B,) from 0.
            seed: of the draws.
        """
        sums = np.stack([np.bincount(clusters, weights=x) for x in self.rows.values()])
        count = sums.shape[1]
        means = resampled_means(sums.T.astype(np.float64), seed)
        columns = dict(zip(self.rows, means.T * count, strict=True))
        with np.errstate(all="ignore"):
            draws = {name: of(columns) for name, of in self.statistics.items()}
        return {name: _finite_interval(values) for name, values in draws.items()}


def _finite_interval(draws: Float64s) -> list[float]:
    """Return the ends of the interval; NaN where no draw has a value."""
    # A draw of few users may hold one class alone.
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return [float("nan")] * 2
    return [float(end) for end in interval(finite)]


def judge_labels(
    schema: Schema,
    logits: SplitLogits,
    keys: RowKeys,
    calibrations: Calibrations | None = None,
) -> Report:
    """Judge every label over the rows of a split that observe it, by its name.

    Args:
        schema: the labels.
        logits: of the split.
        keys: of its rows.
        calibrations: of the checkpoint; None: the model's own predictions.

    Returns:
        By label what `judge_label` returns, and `uncalibrated` figures where a
        calibration was applied.
    """
    predictions, reports = logits.predictions(schema, calibrations), {}
    raw = logits.predictions(schema) if calibrations else {}
    for t, (name, pair) in enumerate(predictions.items()):
        kind, observed = schema.labels[t].kind, keys.select(logits.observed(t))
        reports[name] = judge_label(kind, *pair, observed)
        # What the calibration changed, in the figures that do not depend on users.
        if name in raw:
            figures, _ = (_click if kind == "binary" else _value)(*raw[name])
            reports[name]["uncalibrated"] = figures
    return reports


def judge_label(
    kind: LabelKind,
    predicted: Float64s,
    observed: Float64s,
    keys: RowKeys,
    seed: int = 0,
) -> Report:
    """Judge the predictions of one label.

    Args:
        kind: of the label.
        predicted: (B,) in the label's unit.
        observed: (B,) labels, none missing.
        keys: of these rows.
        seed: of the resamples.

    Returns:
        `figures`, `intervals`, `resampled_by`, `users` (None: no user is known), `bins`
        and `deciles` of the predictions, and `segment`.
    """
    lists = None
    if kind == "binary":
        figures, terms = _click(predicted, observed)
        if keys.user is not None:
            lists = user_lists(predicted, observed, keys.user)
            figures |= _add_lists(terms, lists, keys.user)
    else:
        figures, terms = _value(predicted, observed)
    bins, deciles = (
        [b.to_json() for b in binned(predicted, observed, equal_mass(predicted, count))]
        for count in (BINS, DECILES)
    )
    return {
        "figures": figures,
        "intervals": terms.intervals(keys.clusters(len(observed)), seed),
        "resampled_by": "row" if keys.user is None else "user",
        "users": None if lists is None else _counts(lists),
        "bins": bins,
        "deciles": deciles,
        "segment": _segments(predicted, observed, keys),
    }


def _click(predicted: Float64s, label: Float64s) -> tuple[dict[str, float], Terms]:
    """Return the figures of a probability, and the terms that they are made of."""
    terms = _click_terms(predicted, label)
    slope, intercept = recalibration(predicted, label)
    x = logits_of(predicted)
    residual = label - expit(slope * x + intercept)
    weight = expit(slope * x + intercept) * expit(-slope * x - intercept)
    hessian = np.array(
        [
            [(weight * x * x).sum(), (weight * x).sum()],
            [(weight * x).sum(), weight.sum()],
        ]
    )
    inverse = np.full((2, 2), np.nan)
    if np.isfinite(slope):
        inverse = np.linalg.inv(hessian)
    terms.rows.update(by_slope=residual * x, by_intercept=residual)

    def step(row: int) -> Statistic:
        """Move by one Newton step, whose first-order error is that of a new fit."""
        return lambda s: (
            (slope, intercept)[row]
            + (inverse[row, 0] * s["by_slope"] + inverse[row, 1] * s["by_intercept"])
        )

    terms.statistics.update(slope=step(0), intercept=step(1))
    sums = {name: np.asarray(values.sum()) for name, values in terms.rows.items()}
    with np.errstate(all="ignore"):
        figures = {name: float(of(sums)) for name, of in terms.statistics.items()}
    bins = binned(predicted, label, equal_mass(predicted, BINS))
    return figures | {"ece": calibration_error(bins)}, terms


def _click_terms(predicted: Float64s, label: Float64s) -> Terms:
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


def _add_lists(terms: Terms, lists: UserLists, user: Int64s) -> dict[str, float]:
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


def _counts(lists: UserLists) -> dict[str, int]:
    return {
        "judged": len(lists.users),
        "dropped_users": lists.dropped_users,
        "dropped_rows": lists.dropped_rows,
        "rows_without_user": lists.rows_without_user,
    }


def _value(predicted: Float64s, observed: Float64s) -> tuple[dict[str, float], Terms]:
    """Return the figures of a predicted value, and their terms."""
    error = predicted - observed
    rows = {"rows": np.ones_like(error), "absolute": np.abs(error), "square": error**2}
    rows |= {"predicted": predicted, "observed": observed}
    statistics: dict[str, Statistic] = {
        "mae": lambda s: s["absolute"] / s["rows"],
        "rmse": lambda s: np.sqrt(s["square"] / s["rows"]),
        "calibration": lambda s: s["predicted"] / s["observed"],
    }
    sums = {name: np.asarray(values.sum()) for name, values in rows.items()}
    with np.errstate(all="ignore"):
        figures = {name: float(of(sums)) for name, of in statistics.items()}
    return figures, Terms(rows, statistics)


def _segments(
    predicted: Float64s, observed: Float64s, keys: RowKeys
) -> dict[str, Any] | None:
    """Return the calibration of each value of a column, the most frequent first."""
    if keys.segment_names is None:
        return None
    names, code = np.unique(keys.segment_names, return_inverse=True)
    bins = binned(predicted, observed, code)
    rows = [
        {"value": str(name)} | b.to_json() for name, b in zip(names, bins, strict=True)
    ]
    rows.sort(key=lambda row: (-row["rows"], row["value"]))
    return {"column": keys.segment, "values": rows}
