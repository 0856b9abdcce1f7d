"""Figures on the splits that training never reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.metrics import Predictions, label_metrics
from torchrec_adrec.evaluation.pictures import calibration_curve
from torchrec_adrec.evaluation.predict import predict_split
from torchrec_adrec.schema import Schema


@dataclass(frozen=True)
class Evaluator:
    """Judges a sharded model of one task. Collective.

    Args:
        data: a prepared data set.
        folder: where the calibration's picture goes.
    """

    task: str
    data: Path
    folder: Path
    schema: Schema
    config: Config
    process: Process

    def has(self, split: str) -> bool:
        """Whether the split has rows."""
        return any((self.data / split).glob("*.parquet"))

    def figures(self, model: nn.Module, split: str) -> dict[str, dict[str, float]]:
        """Figures per label over one split, the same on every rank."""
        found = self._predicted(model, split)
        if self.process.is_first and split == "test":
            self._draw_calibration(found)
        return label_metrics(self.schema, found)

    def held_out(self, model: nn.Module) -> dict[str, Any]:
        """All splits that there are."""
        splits = [name for name in ("valid", "test") if self.has(name)]
        return {name: self.figures(model, name) for name in splits}

    def _predicted(self, model: nn.Module, split: str) -> Predictions:
        size, bounds = self.config.train.eval_batch_size, self.config.data.bounds
        folder = self.data / split
        return predict_split(model, folder, self.schema, self.process, size, bounds)

    def _draw_calibration(self, found: Predictions) -> None:
        label, (probability, observed) = next(iter(found.items()))
        title = f"{self.task}: {label} on the test split"
        calibration_curve(probability, observed, title, self.folder / "calibration.png")
