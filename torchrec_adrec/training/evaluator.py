"""Computes a model's figures on the splits that training never reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchrec_adrec.config.data import Bounds
from torchrec_adrec.config.train import TrainConfig
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.metrics import Predictions, label_metrics
from torchrec_adrec.evaluation.pictures import calibration_curve
from torchrec_adrec.evaluation.predict import predict_split
from torchrec_adrec.schema import Schema


@dataclass(frozen=True)
class Evaluator:
    """Judges a sharded model of one task. Collective.

    Args:
        task: `retrieval` or `ranking`.
        data: a prepared data set.
        folder: where the calibration's picture goes.
        schema: of the data.
        process: this rank.
        train: how many rows of all ranks are predicted at a time.
        bounds: what happens to values out of range.
    """

    task: str
    data: Path
    folder: Path
    schema: Schema
    process: Process
    train: TrainConfig
    bounds: Bounds

    def has(self, split: str) -> bool:
        """Whether the split has rows."""
        return any((self.data / split).glob("*.parquet"))

    def figures(self, model: nn.Module, split: str) -> dict[str, dict[str, float]]:
        """Return the figures of each label over one split, the same on every rank."""
        predictions = self._predict(model, split)
        if self.process.is_first and split == "test":
            self._draw_calibration(predictions)
        return label_metrics(self.schema, predictions)

    def held_out(self, model: nn.Module) -> dict[str, Any]:
        """Return the figures of every split that has rows."""
        splits = [name for name in ("valid", "test") if self.has(name)]
        return {name: self.figures(model, name) for name in splits}

    def _predict(self, model: nn.Module, split: str) -> Predictions:
        return predict_split(
            model,
            self.data / split,
            self.schema,
            self.process,
            self.train.eval_batch_size,
            self.bounds,
        )

    def _draw_calibration(self, predictions: Predictions) -> None:
        # Of the first label alone, the click: it is the one that decides.
        label, (probability, observed) = next(iter(predictions.items()))
        title = f"{self.task}: {label} on the test split"
        calibration_curve(probability, observed, title, self.folder / "calibration.png")
