"""Everything that is reported of one label's predictions on held-out rows.

`judge_label` returns what goes to `details` in metrics.json. docs/evaluation.md has the
definitions.

Shape letters: B rows, C clusters of rows (users), F terms.
"""

from typing import Any

import numpy as np
from scipy.special import expit

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.evaluation.calibration_metrics import (
    BINS,
    DECILES,
    binned,
    calibration_error,
    equal_mass,
    logits_of,
    recalibration,
)
from torchrec_adrec.evaluation.predict import SplitLogits
from torchrec_adrec.evaluation.row_keys import RowKeys
from torchrec_adrec.evaluation.terms import Statistic, Terms, add_lists, click_terms
from torchrec_adrec.evaluation.user_lists import UserLists, user_lists
from torchrec_adrec.schema import LabelKind, Schema
from torchrec_adrec.tasks.calibration import Calibrations

Report = dict[str, Any]


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
            figures |= add_lists(terms, lists, keys.user)
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
    terms = click_terms(predicted, label)
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
    figures = terms.figures()
    bins = binned(predicted, label, equal_mass(predicted, BINS))
    return figures | {"ece": calibration_error(bins)}, terms


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
    terms = Terms(rows, statistics)
    return terms.figures(), terms


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
