"""Fits the blend of ranker and towers on validation rows, which neither was trained on.

On their own training rows both are more certain than they may be: on two data sets a
ranker that read the towers' scores of training rows ranked worse than the towers alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from torch import nn

from torchrec_adrec.arrays import Bools, Float64s
from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.checkpoint_files import Checkpoint
from torchrec_adrec.evaluation.metrics import label_metrics
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.tasks.blend import ALONE, FILE, Blend, load_blend, save_blend
from torchrec_adrec.tasks.sharded import build, check_origin, restore
from torchrec_adrec.training.evaluator import Evaluator

LEAST = 100  # rows of each class: with fewer the fit is mostly noise
DEVIATIONS = 2  # standard errors that a gain must exceed


@dataclass(frozen=True)
class BlendFit:
    """A blend, and why it is the one.

    Attributes:
        blend: the one that serves.
        rows: the number of validation rows.
        gain: log loss of the ranker alone minus that of the blend, both fitted on one
            half of the rows and judged on the other.
        error: the standard error of `gain` over the rows.
    """

    blend: Blend
    rows: int
    gain: float = 0.0
    error: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return what `metrics.json` says of it."""
        weights = self.blend.model_dump(mode="json")
        figures = {"rows": self.rows, "gain": self.gain, "error": self.error}
        return {"serves": self.blend.serves, **weights, **figures}


def blend_towers(
    config: Config,
    ranker: Checkpoint,
    towers: Checkpoint | None,
    evaluator: Evaluator,
    model: nn.Module,
    kept: BlendFit | None = None,
) -> tuple[Evaluator, dict[str, Any]]:
    """Fit the blend of a ranker and keep it with its checkpoint. Collective.

    Args:
        config: of the run.
        ranker: the checkpoint that is served, whose weights the model has.
        towers: of retrieval; None: there are none, and the ranker serves alone.
        evaluator: of the ranker.
        model: the ranker, sharded.
        kept: that of a fit that has not seen the validation rows, of a ranker that has.

    Returns:
        An evaluator of what is served, and what is reported of it: the test
        figures of each alone are `towers_alone` and `ranker_alone`.
    """
    if evaluator.task != "ranking" or config.ranking.blend == "none":
        return evaluator, {}
    fitted, report = BlendFit(ALONE, 0), {}
    if towers is not None and (kept or evaluator.has("valid")):
        schema, process = evaluator.schema, evaluator.process
        other = build("retrieval", schema, config, process).model
        checkpoint.load(towers, other, schema)
        of_towers = replace(evaluator, task="retrieval")
        fitted = kept or _fit_on_valid(evaluator, model, of_towers, other, towers)
        click = schema.label_names[0]
        for name, judge, part in (
            ("ranker", evaluator, model),
            ("towers", of_towers, other),
        ):
            predictions = judge.logits(part, "test").predictions(schema)
            report[f"{name}_alone"] = label_metrics(schema, predictions)[click]
        evaluator = replace(evaluator, blend=fitted.blend, towers=other)
    if evaluator.process.is_first:
        save_blend(ranker, fitted.blend)
    evaluator.process.barrier()
    return evaluator, {"blend": fitted.to_json() | report}


def _fit_on_valid(
    evaluator: Evaluator,
    model: nn.Module,
    of_towers: Evaluator,
    other: nn.Module,
    towers: Checkpoint,
) -> BlendFit:
    valid = evaluator.logits(model, "valid")
    logits = of_towers.logits(other, "valid").logits[:, 0]
    return fit_blend(valid.logits[:, 0], logits, valid.labels[:, 0], towers.origin)


def with_blend(
    evaluator: Evaluator, config: Config, run: Path, ranker: Checkpoint
) -> Evaluator:
    """Return an evaluator of what a finished run serves. Collective.

    Args:
        evaluator: of either task.
        config: of the run.
        run: its folder.
        ranker: the checkpoint that is judged.

    Raises:
        ManifestError: the blend is with other towers than those of the run.
    """
    blend = load_blend(ranker)
    if blend == ALONE:
        return evaluator
    schema, process = evaluator.schema, evaluator.process
    towers, origin = restore("retrieval", run, schema, config, process)
    check_origin(ranker.path / FILE, blend.origin, origin)
    return replace(evaluator, blend=blend, towers=towers)


def fit_blend(
    ranker: Float64s, towers: Float64s, clicks: Float64s, origin: Origin
) -> BlendFit:
    """Fit weights that are not negative, and keep the towers if they gain enough.

    Args:
        ranker: (B,) logits of validation rows.
        towers: (B,) logits of the same rows.
        clicks: (B,) 0 or 1, NaN where not observed.
        origin: the checkpoint of the towers.
    """
    observed = ~np.isnan(clicks)
    ranker, towers, clicks = (x[observed] for x in (ranker, towers, clicks))
    rows, positive = len(clicks), int(clicks.sum())
    if min(positive, rows - positive) < LEAST:
        return BlendFit(ALONE, rows)
    alone, both = ranker[:, None], np.stack([ranker, towers], axis=1)
    gains = _held_out_losses(alone, clicks) - _held_out_losses(both, clicks)
    gain, error = float(gains.mean()), float(gains.std() / np.sqrt(rows))
    if gain <= DEVIATIONS * error:
        return BlendFit(ALONE, rows, gain, error)
    a, b, intercept = _fit(both, clicks).tolist()
    if not b:
        # A ranker with a new slope would serve, and the report would call it alone.
        return BlendFit(ALONE, rows, gain, error)
    blend = Blend(ranker=a, towers=b, intercept=intercept, origin=origin)
    return BlendFit(blend, rows, gain, error)


def _held_out_losses(logits: Float64s, clicks: Float64s) -> Float64s:
    """Return the log loss of each row under the fit of the half it is not in, (B,)."""
    losses = np.empty(len(clicks))
    # The halves in time: what is fitted on one must hold on the other.
    first = np.arange(len(clicks)) < len(clicks) // 2
    for half in (first, ~first):
        losses[half] = _loss(_fit(logits[~half], clicks[~half]), logits, clicks, half)
    return losses


def _loss(
    weights: Float64s, logits: Float64s, clicks: Float64s, rows: Bools
) -> Float64s:
    z = logits[rows] @ weights[:-1] + weights[-1]
    return np.asarray(np.logaddexp(0, z) - clicks[rows] * z)


def _fit(logits: Float64s, clicks: Float64s) -> Float64s:
    """Fit the weights of logits (B, X), not negative, and an intercept, (X + 1,)."""
    table = np.hstack([logits, np.ones((len(logits), 1))])

    def mean_loss(weights: Float64s) -> tuple[float, Float64s]:
        z = table @ weights
        loss = float((np.logaddexp(0, z) - clicks * z).mean())
        return loss, table.T @ (expit(z) - clicks) / len(z)

    start = np.append(np.full(logits.shape[1], 1 / logits.shape[1]), 0.0)
    bounds = [(0.0, None)] * logits.shape[1] + [(None, None)]
    result = minimize(mean_loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(result.x, dtype=np.float64)
