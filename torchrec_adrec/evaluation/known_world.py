"""The metrics that the best possible model reaches on a known world's rows."""

from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import entr
from sklearn.metrics import roc_auc_score

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.evaluation.metrics import click_metrics


def bayes(truth: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Judge p(click) itself: no prediction has a better expectation.

    Args:
        truth: rows of a known world, with `p_click` and with `engagement`, which is
            null without a click.

    Returns:
        `expected`: the exact `auc` and `log_loss` over all clicks that could have been
        drawn, `base_entropy` (the constant's log loss) and `click_rate`. `drawn`: of
        the clicks that were, as `click_metrics`.
    """
    p = truth["p_click"].to_numpy()
    clicked = truth["engagement"].is_not_null().to_numpy().astype(np.float64)
    return {"expected": expected_metrics(p), "drawn": click_metrics(p, clicked)}


def expected_metrics(p: Float64s) -> dict[str, float]:
    """Compute the expectation of the metrics over all clicks that could be drawn.

    Each row counts as a click with weight p and as none with weight 1 - p.

    Args:
        p: (N,) true p(click), neither all 0 nor all 1.
    """
    rate = p.mean()
    return {
        "auc": expected_auc(p, p),
        # `entr` is -p log p: the expected log loss of a true p is its entropy.
        "log_loss": float((entr(p) + entr(1 - p)).mean()),
        "base_entropy": float(entr(rate) + entr(1 - rate)),
        "click_rate": float(rate),
    }


def expected_auc(score: Float64s, p: Float64s) -> float:
    """Compute the AUC of any score over all clicks that could be drawn.

    Args:
        score: (N,).
        p: (N,) true p(click).
    """
    # Every row stands in for both outcomes, each with its probability as weight: the
    # weighted AUC over these is the mean over all drawn clicks, without drawing any.
    label = np.repeat([1, 0], len(p))
    weight = np.concatenate([p, 1 - p])
    return float(roc_auc_score(label, np.tile(score, 2), sample_weight=weight))


def judge_rows(rows: Path) -> dict[str, dict[str, float]]:
    """Judge the rows of a `rows.parquet` as `bayes` does."""
    return bayes(pl.read_parquet(rows, columns=["p_click", "engagement"]))
