"""The figure on validation rows by which settings are chosen."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.runs.stages import stage_folder

HIGHER = ("auc", "spearman", "recall", "hit_rate", "ndcg", "mrr")
LOWER = ("log_loss", "normalized_entropy", "rmse", "mae")
COUNTS = ("rows", "clicks", "label_rate", "mean")  # of the rows, not of a model
OF_LISTS = "export"  # whose figures are of the towers' lists and not of a label

Figures = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """Names one figure of one stage.

    Attributes:
        stage: whose `metrics.json` has it.
        label: of which it is; empty for the stage `export`.
        figure: its name.
    """

    stage: str
    label: str
    figure: str

    @classmethod
    def parse(cls, text: str, stages: tuple[str, ...]) -> "Metric":
        """Read `STAGE.LABEL.FIGURE`, or `export.FIGURE`.

        Args:
            text: as it stands in the file; empty: the first label's AUC, if that is
                called click, or the recall@100 of `export` alone.
            stages: that the sweep makes.

        Raises:
            ConfigError: no such stage, or a figure that is neither better when it is
                higher nor when it is lower.

        >>> Metric.parse("ranking.click.log_loss", ("ranking",)).is_higher_better
        False
        """
        last = stages[-1]
        default = "export.recall@100" if last == OF_LISTS else f"{last}.click.auc"
        parts = (text or default).split(".")
        if parts[0] == OF_LISTS and len(parts) == 2:
            parts.insert(1, "")
        if len(parts) != 3 or parts[0] not in stages:
            raise ConfigError(
                f"metric {text!r}: expected STAGE.LABEL.FIGURE, as ranking.click.auc,"
                f" or export.recall@100, of a stage in {', '.join(stages)}"
            )
        metric = cls(*parts)
        if metric.figure.partition("@")[0] not in (*HIGHER, *LOWER):
            raise ConfigError(
                f"metric {text!r}: nothing is known of {metric.figure}, expected one of"
                f" {', '.join((*HIGHER, *LOWER))}; recall, hit_rate and ndcg with @K"
            )
        return metric

    @property
    def is_higher_better(self) -> bool:
        """Whether a higher figure is a better one."""
        return self.figure.partition("@")[0] in HIGHER

    def __str__(self) -> str:
        """Return it as it stands in a file."""
        return ".".join(filter(None, (self.stage, self.label, self.figure)))

    def valid(self, run: Path) -> Figures:
        """Read the figures of a finished run on its validation rows.

        Raises:
            DataError: it has none, or not the one that is named.
        """
        metrics = _read(run, self.stage)
        # A refitted ranker has seen these rows since: those of its first fit count.
        source = metrics if "valid" in metrics else metrics.get("first_fit", {})
        figures = self._named(source.get("valid", {}), "towers")
        if not math.isfinite(figures.get(self.figure, math.nan)):
            hint = "are there validation rows of both classes (data.split.valid)?"
            if figures and self.figure not in figures:
                hint = f"name one of {', '.join(figures)} as the metric"
            raise DataError(
                f"{run / self.stage}: the validation rows have no {self}; {hint}"
            )
        return figures

    def test(self, run: Path) -> Figures:
        """Read the figures of a finished run on its test rows."""
        test = _read(run, self.stage)["test"]
        return self._named(test.get("all", test), "towers")

    def _named(self, figures: dict[str, Any], method: str) -> Figures:
        chosen = figures.get(self.label or method, {})
        return {
            name: value
            for name, value in chosen.items()
            if isinstance(value, int | float) and name not in COUNTS
        }


def _read(run: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((stage_folder(run, stage) / "metrics.json").read_text()))
