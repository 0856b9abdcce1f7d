"""Warn when a model is worse than the baselines that it has to beat."""

import logging
from collections.abc import Iterator
from typing import Any

from torchrec_adrec.evaluation.funnel.names import FUNNEL, RIVALS

Metrics = dict[str, Any]
MODELS = {"retrieval": "towers", "ranking": "ranker"}

log = logging.getLogger(__name__)


def below_baselines(metrics: Metrics) -> list[str]:
    """List the test metrics in which a baseline is better, one sentence each.

    Args:
        metrics: by stage; `baselines`, and `retrieval`, `ranking`, `export` and
            `funnel` where they are finished.
    """
    lines: list[str] = []
    for stage, model in MODELS.items():
        if stage in metrics:
            figures = next(iter(metrics[stage]["test"].values()))  # of the click
            lines += _clicks(model, figures, metrics["baselines"])
    if "export" in metrics:
        lines += _recalls(metrics["export"]["test"]["all"])
    if "funnel" in metrics:
        lines += _funnel(metrics["funnel"]["rows"])
    return lines


def _clicks(model: str, figures: Metrics, baselines: Metrics) -> Iterator[str]:
    # A comparison with NaN is false: test rows of one class have no AUC to compare.
    regression = baselines["logistic_regression"]["test"]["auc"]
    constant = baselines["constant"]["test"]["log_loss"]
    if figures["auc"] < regression:
        yield (
            f"the test AUC of the {model}, {figures['auc']:.4f}, is below"
            f" {regression:.4f} of the logistic regression"
        )
    if figures["log_loss"] > constant:
        yield (
            f"the test log loss of the {model}, {figures['log_loss']:.4f}, is worse"
            f" than {constant:.4f} of one probability for all rows"
        )


def _recalls(judged: Metrics) -> Iterator[str]:
    towers, popularity = judged["towers"], judged["popularity"]
    for name in (key for key in towers if key.startswith("recall@")):
        if towers[name] < popularity[name]:
            yield (
                f"{name} of the towers, {towers[name]:.4f}, is below"
                f" {popularity[name]:.4f} of the most shown ads for all"
            )


def _funnel(rows: Metrics) -> Iterator[str]:
    served = rows[FUNNEL]["mean"]
    for name in RIVALS:
        if name in rows and served < rows[name]["mean"]:
            yield (
                f"the worth of the served lists, {served:.4f}, is below"
                f" {rows[name]['mean']:.4f} of {name}"
            )


def warn_below(metrics: Metrics) -> None:
    """Log each sentence of `below_baselines` as a warning."""
    for line in below_baselines(metrics):
        log.warning(
            "%s: look at data/report.md, the learning rates and the number of steps"
            " (train.batch_size, train.epochs)",
            line,
        )
