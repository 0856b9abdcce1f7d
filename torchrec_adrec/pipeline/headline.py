"""The main figure of each stage, for its line on the terminal."""

from collections.abc import Callable
from typing import Any

Metrics = dict[str, Any]


def headline(stage: str, metrics: Metrics) -> str:
    """Return the figure that says best how a stage went.

    >>> headline("serve", {"milliseconds": {"rank": 19.9, "total": 34.99}})
    '35.0 ms a request'
    """
    return HEADLINES[stage](metrics)


def defined(figure: float) -> str:
    """Write a figure; NaN, as an AUC of one class alone, is no number.

    >>> defined(0.5), defined(float("nan"))
    ('0.5000', 'not defined')
    """
    return f"{figure:.4f}" if figure == figure else "not defined"


def _data(metrics: Metrics) -> str:
    bad, ads = metrics["bad_rows"]["count"], metrics["ads"]["all"]
    return f"{metrics['rows_in']:,} rows ({bad:,} bad), {ads:,} ads"


def _baselines(metrics: Metrics) -> str:
    figures = metrics["logistic_regression"]["test"]
    return f"test AUC {figures['auc']:.4f} of a logistic regression"


def _model(metrics: Metrics) -> str:
    """Return a figure of the first label: an AUC, or a value's rank correlation."""
    label, figures = next(iter(metrics["test"].items()))
    if "auc" in figures:
        return f"test AUC {defined(figures['auc'])} of {label}"
    return f"test Spearman correlation {figures['spearman']:.4f} of {label}"


def _export(metrics: Metrics) -> str:
    test = metrics["test"]
    towers = test["all"]["towers"]
    recalls = [name for name in towers if name.startswith("recall@")]
    if not recalls:  # no click was held out
        return f"{test['catalog']:,} ads"
    name = "recall@100" if "recall@100" in recalls else recalls[-1]
    return f"{name} {towers[name]:.4f} of {test['catalog']:,} ads"


def _index(metrics: Metrics) -> str:
    return f"recall@{metrics['k']} {metrics['recall']:.4f} against brute force"


def _serve(metrics: Metrics) -> str:
    return f"{metrics['milliseconds']['total']:.1f} ms a request"


def _funnel(metrics: Metrics) -> str:
    share = metrics["rows"]["funnel"]["share"]
    return f"{share:.4f} of the oracle's worth, {metrics['protocol']['users']} users"


HEADLINES: dict[str, Callable[[Metrics], str]] = {
    "data": _data,
    "baselines": _baselines,
    "retrieval": _model,
    "export": _export,
    "index": _index,
    "ranking": _model,
    "serve": _serve,
    "funnel": _funnel,
}
