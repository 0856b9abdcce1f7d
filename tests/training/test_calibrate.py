"""A calibration is fitted on the validation rows and keeps the order of predictions."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from sklearn.metrics import log_loss, roc_auc_score

from torchrec_adrec.config.train import CalibrationKind, RankingConfig
from torchrec_adrec.errors import ConfigError, PredictionError, TrainingError
from torchrec_adrec.evaluation.calibration_metrics import recalibration
from torchrec_adrec.evaluation.predict import SplitLogits
from torchrec_adrec.schema import Label, Schema, Side, SparseFeature
from torchrec_adrec.tasks.label_heads import prediction
from torchrec_adrec.training.calibrate import check_enough_rows, fit_calibrations

KINDS: Any = [kind for kind in get_args(CalibrationKind) if kind != "none"]
SCHEMA = Schema(
    dense=(),
    sparse=tuple(
        SparseFeature(name=name, side=side, source=name, kind="text")
        for name, side in (("city", Side.USER), ("brand", Side.AD))
    ),
    labels=(
        Label(name="click"),
        Label(name="buys"),
        Label(name="value", kind="value", max_value=99, mean=2.0),
    ),
)


def split(seed: int, slope: float = 0.4, intercept: float = 0.7) -> SplitLogits:
    """Logits whose true log odds are slope * logit + intercept; `buys` of clicks."""
    rng, rows = np.random.default_rng(seed), 6000
    logits = rng.normal(0, 2, (rows, 3))
    p = 1 / (1 + np.exp(-(slope * logits[:, :2] + intercept)))
    labels = np.full((rows, 3), np.nan)
    labels[:, :2] = rng.random((rows, 2)) < p
    labels[labels[:, 0] == 0, 1] = np.nan
    labels[:, 2] = 3 * 2.0 * np.exp(logits[:, 2]) * rng.lognormal(-0.02, 0.2, rows)
    return SplitLogits(np.arange(rows), logits, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_on_other_rows_are_calibrated(kind: Any) -> None:
    valid, test = split(0), split(1)
    calibrations = fit_calibrations(kind, SCHEMA, valid)
    before, after = test.predictions(SCHEMA), test.predictions(SCHEMA, calibrations)
    for name in ("click", "buys"):
        raw, label = before[name]
        p, _ = after[name]
        assert log_loss(label, p) < log_loss(label, raw) - 0.02
        order = np.argsort(raw, kind="stable")
        assert (np.diff(p[order]) >= 0).all()
        assert p.min() > 0 and p.max() < 1
        slope, _ = recalibration(raw, label)
        assert slope < 0.6
        slope, _ = recalibration(p, label)
        assert slope == pytest.approx(1, abs=0.15)
        if kind != "isotonic":
            assert roc_auc_score(label, p) == roc_auc_score(label, raw)
        if kind != "temperature":
            assert p.mean() == pytest.approx(label.mean(), abs=0.02)
    values, observed = after["value"]
    assert values.mean() == pytest.approx(observed.mean(), rel=0.05)
    assert before["value"][0].mean() < 0.5 * observed.mean()


def test_the_line_is_the_one_of_the_least_loss() -> None:
    valid = split(0)
    x, label = valid.logits[:, 0], valid.labels[:, 0]

    def loss(slope: float, intercept: float) -> float:
        return float(log_loss(label, 1 / (1 + np.exp(-(slope * x + intercept)))))

    platt: Any = fit_calibrations("platt", SCHEMA, valid)["click"]
    best = minimize(lambda a: loss(*a), [1, 0], tol=1e-9).x
    assert (platt.slope, platt.intercept) == pytest.approx(best, abs=1e-3)
    temperature: Any = fit_calibrations("temperature", SCHEMA, valid)["click"]
    best = minimize_scalar(lambda slope: loss(slope, 0), tol=1e-9).x
    assert temperature.slope == pytest.approx(best, abs=1e-3)
    assert temperature.intercept == 0


@pytest.mark.parametrize("kind", KINDS)
def test_none_is_none_and_a_bad_order_is_refused(kind: Any) -> None:
    assert fit_calibrations("none", SCHEMA, split(0)) == {}
    with pytest.raises(TrainingError, match="the slope of click on the validation"):
        fit_calibrations(kind, SCHEMA, split(0, slope=-0.5))


def test_a_logit_that_is_not_finite_stays_an_error() -> None:
    """Isotonic steps would make a probability of an infinite logit."""
    calibrations = fit_calibrations("isotonic", SCHEMA, split(0))
    logits = torch.tensor([0.0, torch.inf], dtype=torch.float64)
    with pytest.raises(PredictionError, match="1 of 2 predictions of click"):
        prediction(SCHEMA.labels[0], logits, calibrations)


def write(folder: Path, clicks: int, others: int) -> None:
    click = [1.0] * clicks + [0.0] * others
    half = [1.0, 0.0] * (len(click) // 2)
    (folder / "valid").mkdir(exist_ok=True)
    pl.DataFrame({"click": click, "buys": half, "value": 1.0}).write_parquet(
        folder / "valid/part-00000-000000.parquet"
    )


def test_too_few_validation_rows_are_refused_before_training(tmp_path: Path) -> None:
    def check(kind: Any, task: str = "ranking", data: Path = tmp_path) -> None:
        config = RankingConfig(calibration=kind)
        check_enough_rows(task, config, data, SCHEMA)

    check("platt", "retrieval")
    check("none")
    with pytest.raises(ConfigError, match=r"valid has 0 rows with a click above 0"):
        check("platt")
    write(tmp_path, 100, 100)
    check("platt")
    # Another folder: a file replaced within a tick of the clock looks the same.
    few = tmp_path / "few"
    few.mkdir()
    write(few, 101, 99)
    message = "has 99 rows with a click of 0, expected at least 100"
    with pytest.raises(ConfigError, match=message):
        check("isotonic", data=few)
