"""What the runs of a variant gave, and which variant is chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from torchrec_adrec.sweep.metric import Figures, Metric
from torchrec_adrec.sweep.plan import Variant


@dataclass
class Outcome:
    """The figures of a variant on validation rows.

    Attributes:
        variant: its name and settings.
        valid: seed -> figures of the finished runs.
        failed: seed -> why there is no run.
        is_pruned: whether a search gave it up before its last run.
    """

    variant: Variant
    valid: dict[int, Figures] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    is_pruned: bool = False

    def value(self, metric: Metric) -> float:
        """Return the mean of the figure that chooses; NaN if a run is missing."""
        if self.failed or self.is_pruned or not self.valid:
            return math.nan
        return mean(figures[metric.figure] for figures in self.valid.values())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "name": self.variant.name,
            "settings": dict(self.variant.settings),
            "validation": summary(list(self.valid.values())),
            "by_seed": {str(seed): figures for seed, figures in self.valid.items()},
            "failed": {str(seed): reason for seed, reason in self.failed.items()},
            "pruned": self.is_pruned,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Outcome":
        """Return what `to_json` has written."""
        return cls(
            Variant(content["name"], content["settings"]),
            {int(seed): figures for seed, figures in content["by_seed"].items()},
            {int(seed): reason for seed, reason in content["failed"].items()},
            content["pruned"],
        )


def summary(runs: Sequence[Figures]) -> dict[str, dict[str, float | None]]:
    """Return mean and standard deviation of every figure that all runs have."""
    names = [name for name in (runs[0] if runs else ()) if all(name in r for r in runs)]
    return {
        name: {
            "mean": mean(run[name] for run in runs),
            "sd": stdev(run[name] for run in runs) if len(runs) > 1 else None,
        }
        for name in names
    }


def choose(outcomes: Sequence[Outcome], metric: Metric) -> Outcome | None:
    """Return the variant with the best mean, of equal ones the first.

    A variant of which a run failed is not chosen: the mean over fewer seeds is that of
    other runs.
    """
    whole = [o for o in outcomes if not math.isnan(o.value(metric))]
    sign = 1 if metric.is_higher_better else -1
    return max(whole, key=lambda o: sign * o.value(metric), default=None)
