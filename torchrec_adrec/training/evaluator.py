"""Computes a model's figures on the splits that training never reads."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from torchrec_adrec.config.data import Bounds
from torchrec_adrec.config.train import TrainConfig
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.evaluation.label_report import judge_labels
from torchrec_adrec.evaluation.metrics import label_metrics
from torchrec_adrec.evaluation.pictures import reliability_picture
from torchrec_adrec.evaluation.predict import SplitLogits, split_logits
from torchrec_adrec.evaluation.row_keys import check_segment, read_row_keys
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.blend import ALONE, Blend
from torchrec_adrec.tasks.calibration import Calibrations, to_json
from torchrec_adrec.tasks.task import columns_of


@dataclass(frozen=True)
class Evaluator:
    """Judges a sharded model of one task. Collective.

    Args:
        task: `retrieval` or `ranking`.
        data: a prepared data set.
        folder: where the picture of calibration goes.
        schema: of the data.
        process: this rank.
        train: how many rows of all ranks are predicted at a time.
        bounds: what happens to values out of range.
        blend: of the ranker with the towers; every figure is that of the blend.
        towers: sharded; only a blend that reads them needs them.
        trained_on: splits that the model has seen; its figures on them say nothing.
    """

    task: str
    data: Path
    folder: Path
    schema: Schema
    process: Process
    train: TrainConfig
    bounds: Bounds
    blend: Blend = ALONE
    towers: nn.Module | None = None
    trained_on: tuple[str, ...] = ("train",)

    def __post_init__(self) -> None:
        # Now, and not after hours of training.
        check_segment(self.train.segment, self.schema)

    def has(self, split: str) -> bool:
        """Whether the split has rows, and the model has not seen them."""
        return split not in self.trained_on and any(
            (self.data / split).glob("*.parquet")
        )

    def check_every(self, evaluate_every: int) -> None:
        """Check that there are rows to judge by every so many steps.

        Args:
            evaluate_every: steps; 0: never.

        Raises:
            ConfigError: there are no validation rows, or the model is trained on them.
        """
        if evaluate_every and not self.has("valid"):
            raise ConfigError(
                f"train.evaluate_every is set, but {self.data / 'valid'} has no rows;"
                " prepare with data.split.valid above 0"
            )

    def figures(self, model: nn.Module, split: str) -> dict[str, dict[str, float]]:
        """Return the figures of each label over one split, the same on every rank."""
        predictions = self.logits(model, split).predictions(self.schema)
        return label_metrics(self.schema, predictions)

    def held_out(
        self, model: nn.Module, calibrations: Calibrations | None = None
    ) -> dict[str, Any]:
        """Return the calibration, the figures of every split, the test's `details`.

        Args:
            model: the model that is served.
            calibrations: of its checkpoint. Those of the validation rows were fitted on
                these very rows.
        """
        metrics: dict[str, Any] = {"calibration": to_json(calibrations or {})}
        if self.has("valid"):
            logits = self.logits(model, "valid")
            predictions = logits.predictions(self.schema, calibrations)
            metrics["valid"] = label_metrics(self.schema, predictions)
        metrics |= self.test(model, calibrations)
        if self.process.is_first:
            self._draw_calibration(metrics["details"])
        return metrics

    def test(
        self, model: nn.Module, calibrations: Calibrations | None = None
    ) -> dict[str, Any]:
        """Return the figures of the test split as `test`, all others as `details`.

        The details are computed by the first rank alone: on any other there are none.
        """
        logits = self.logits(model, "test")
        predictions = logits.predictions(self.schema, calibrations)
        metrics: dict[str, Any] = {"test": label_metrics(self.schema, predictions)}
        if self.process.is_first:
            keys = read_row_keys(
                self.data, "test", logits.rows, self.schema, self.train.segment
            )
            metrics["details"] = judge_labels(self.schema, logits, keys, calibrations)
        return metrics

    def logits(self, model: nn.Module, split: str) -> SplitLogits:
        """Compute the logits of one split that are served, the same on every rank."""
        assert split not in self.trained_on, f"the model has seen the rows of {split}"
        logits = self._logits(self.task, model, split)
        if self.blend == ALONE:
            return logits
        assert self.towers is not None, "the blend reads the towers"
        towers = self._logits("retrieval", self.towers, split)
        assert np.array_equal(logits.rows, towers.rows), "rows of one split"
        served = logits.logits.copy()
        served[:, 0] = self.blend.apply(served[:, 0], towers.logits[:, 0])
        return replace(logits, logits=served)

    def _logits(self, task: str, model: nn.Module, split: str) -> SplitLogits:
        return split_logits(
            model,
            self.data / split,
            columns_of(task, self.schema),
            self.process,
            self.train.eval_batch_size,
            self.bounds,
        )

    def _draw_calibration(self, details: Mapping[str, Any]) -> None:
        labels = {name: d["bins"] for name, d in details.items() if d["bins"]}
        title = f"{self.task}: test split"
        reliability_picture(labels, title, self.folder / "calibration.png")
