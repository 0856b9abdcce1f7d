"""Fits calibrations on the validation rows, which no weight was trained on.

On training rows a model is more certain than it may be, and on test rows the fit would
flatter the figures that are reported of it.
"""

from pathlib import Path

import numpy as np
import polars as pl
import torch
from sklearn.isotonic import IsotonicRegression
from torch import nn

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.config.train import CalibrationKind, RankingConfig
from torchrec_adrec.distributed.checkpoint_files import Checkpoint
from torchrec_adrec.errors import ConfigError, TrainingError
from torchrec_adrec.evaluation.calibration_metrics import fit_line
from torchrec_adrec.evaluation.predict import SplitLogits
from torchrec_adrec.schema import Label, Schema
from torchrec_adrec.tasks.calibration import (
    Calibrations,
    Line,
    Ratio,
    Steps,
    save_calibrations,
)
from torchrec_adrec.tasks.label_heads import prediction
from torchrec_adrec.training.evaluator import Evaluator

LEAST = 100  # rows of each class: with fewer the fit is mostly noise


def calibrate(
    config: RankingConfig,
    checkpoint: Checkpoint,
    evaluator: Evaluator,
    model: nn.Module,
    kept: Calibrations | None = None,
) -> Calibrations:
    """Fit the calibration of a ranker and keep it with its checkpoint. Collective.

    Args:
        config: says what is fitted.
        checkpoint: the one that is served, whose weights the model has.
        evaluator: of the same task; it computes the logits.
        model: sharded.
        kept: those of a fit that has not seen the validation rows, of a model that has.

    Returns:
        None for towers, which serve an order and no probability.
    """
    if evaluator.task != "ranking" or config.calibration == "none":
        return {}
    calibrations = kept
    if calibrations is None:
        logits = evaluator.logits(model, "valid")
        calibrations = fit_calibrations(config.calibration, evaluator.schema, logits)
    if evaluator.process.is_first:
        save_calibrations(checkpoint, calibrations)
    evaluator.process.barrier()
    return calibrations


def check_enough_rows(
    task: str, config: RankingConfig, data: Path, schema: Schema
) -> None:
    """Refuse to calibrate on too few validation rows, before training begins.

    Args:
        task: towers are not calibrated.
        config: says what is to be fitted.
        data: a prepared data set.
        schema: the labels.

    Raises:
        ConfigError: names the label and its numbers of rows.
    """
    kind = config.calibration
    if task != "ranking" or kind == "none":
        return
    valid = data / "valid"
    files = sorted(valid.glob("part-*.parquet"))
    labels = pl.DataFrame({name: [] for name in schema.label_names})
    if files:
        labels = pl.scan_parquet(files).select(schema.label_names).collect()
    for label in schema.labels:
        observed = labels[label.name].cast(pl.Float64).to_numpy()
        positive = int((observed > 0).sum())
        counts = {"above 0": positive}
        if label.kind == "binary":
            counts |= {"of 0": int((observed == 0).sum())}
        for noun, rows in counts.items():
            if rows < LEAST:
                raise ConfigError(
                    f"ranking.calibration = {kind}: {valid} has {rows} rows with a"
                    f" {label.name} {noun}, expected at least {LEAST}; prepare with a"
                    " larger data.split.valid, or set ranking.calibration=none"
                )


def fit_calibrations(
    kind: CalibrationKind, schema: Schema, valid: SplitLogits
) -> Calibrations:
    """Fit each label on the validation rows that observe it.

    Args:
        kind: what is fitted to binary labels; a value gets a ratio.
        schema: the labels.
        valid: logits of the validation split.

    Raises:
        TrainingError: a label that no calibration keeps in order.
    """
    if kind == "none":
        return {}
    calibrations: dict[str, Line | Steps | Ratio] = {}
    for t, label in enumerate(schema.labels):
        rows = valid.observed(t)
        logits, observed = valid.logits[rows, t], valid.labels[rows, t]
        if label.kind == "value":
            calibrations[label.name] = _ratio(label, logits, observed)
        elif kind == "isotonic":
            calibrations[label.name] = _isotonic(label, logits, observed)
        else:
            calibrations[label.name] = _line(kind, label, logits, observed)
    return calibrations


def _line(
    kind: CalibrationKind, label: Label, logits: Float64s, observed: Float64s
) -> Line:
    slope, intercept = fit_line(logits, observed, with_intercept=kind == "platt")
    _check_order(kind, label, slope)
    return Line(kind=kind, slope=slope, intercept=intercept)


def _check_order(kind: CalibrationKind, label: Label, slope: float) -> None:
    if not slope > 0:
        raise TrainingError(
            f"ranking.calibration = {kind}: the slope of {label.name} on the validation"
            f" rows is {slope:.3g}, expected one above 0: the model orders them no"
            " better than chance, or without a fault; set ranking.calibration=none"
        )


def _isotonic(label: Label, logits: Float64s, observed: Float64s) -> Steps:
    # Of logits that fall as the label rises, all steps are one: every ad would have the
    # same prediction. The covariance has the sign of a line's slope.
    covariance = float(np.mean((logits - logits.mean()) * observed))
    _check_order("isotonic", label, covariance)
    # No probability of 0 or 1: one click at a probability of 0 would be an infinite
    # loss, and 100 rows do not tell it from 0.01.
    edge = 1 / (len(observed) + 2)
    model = IsotonicRegression(y_min=edge, y_max=1 - edge)
    model.fit(logits, observed)
    knots = np.asarray(model.X_thresholds_), np.asarray(model.y_thresholds_)
    return Steps(
        kind="isotonic",
        logits=tuple(knots[0].tolist()),
        probabilities=tuple(knots[1].tolist()),
    )


def _ratio(label: Label, logits: Float64s, observed: Float64s) -> Ratio:
    predicted = prediction(label, torch.from_numpy(logits)).numpy()
    return Ratio(kind="ratio", factor=float(observed.mean() / predicted.mean()))
