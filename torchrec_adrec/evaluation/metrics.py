"""Metrics of predictions, from scikit-learn's and scipy's implementations.

`LABEL_METRICS` is all that evaluation knows of the kinds of labels.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import log_loss, roc_auc_score

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.schema import Schema

# Per label: what was predicted and what was observed, both (N,).
Predictions = dict[str, tuple[Float64s, Float64s]]


def click_metrics(probability: Float64s, label: Float64s) -> dict[str, float]:
    """Compute AUC, log loss, normalised entropy and calibration of observed rows.

    Args:
        probability: (N,) predicted p(label = 1).
        label: (N,) 0 or 1.

    Returns:
        `auc` (NaN if only one class is there), `log_loss`, `normalized_entropy` (log
        loss over that of the constant base rate: He et al., ADKDD 2014), `calibration`
        (mean prediction over mean label), `rows`, `label_rate`.
    """
    rate = float(label.mean())
    both = 0 < rate < 1
    loss = float(log_loss(label, probability, labels=[0, 1]))
    # With one class alone neither AUC nor the base rate's entropy is defined: NaN.
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)) if both else np.nan
    return {
        "auc": float(roc_auc_score(label, probability)) if both else float("nan"),
        "log_loss": loss,
        "normalized_entropy": float(loss / entropy),
        "calibration": float(probability.mean() / rate) if rate else float("nan"),
        "rows": len(label),
        "label_rate": rate,
    }


def value_metrics(predicted: Float64s, observed: Float64s) -> dict[str, float]:
    """Compute errors and rank correlation of predicted values of observed rows.

    Args:
        predicted: (N,).
        observed: (N,).

    Returns:
        `rmse`, `mae`, `spearman` (rank correlation), `calibration` (mean prediction
        over mean value), `rows`, `mean`.
    """
    error, mean = predicted - observed, float(observed.mean())
    return {
        "rmse": float(np.sqrt((error**2).mean())),
        "mae": float(np.abs(error).mean()),
        "spearman": float(spearmanr(predicted, observed).statistic),
        "calibration": float(predicted.mean() / mean) if mean else float("nan"),
        "rows": len(observed),
        "mean": mean,
    }


LABEL_METRICS: Mapping[str, Callable[[Float64s, Float64s], dict[str, float]]] = {
    "binary": click_metrics,
    "value": value_metrics,
}


def label_metrics(
    schema: Schema, predictions: Predictions
) -> dict[str, dict[str, float]]:
    """Compute the metrics that fit each label's kind, by the label's name."""
    kinds = {label.name: label.kind for label in schema.labels}
    return {
        name: LABEL_METRICS[kinds[name]](predicted, observed)
        for name, (predicted, observed) in predictions.items()
    }
