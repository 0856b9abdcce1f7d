"""What a ranker's fit on the training rows leaves to its refit on more rows.

How long to train, the blend and the calibration can only be told by rows that no weight
has seen. The refit has seen the validation rows, so it takes over all three.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec_adrec.distributed.checkpoint_files import Checkpoint
from torchrec_adrec.tasks.blend import load_blend
from torchrec_adrec.tasks.calibration import Calibrations, load_calibrations
from torchrec_adrec.tasks.sharded import METRICS, final_checkpoint
from torchrec_adrec.training.blend import BlendFit


@dataclass(frozen=True)
class FirstFit:
    """A finished fit on the training rows, judged on the validation rows.

    Attributes:
        checkpoint: its best one.
        metrics: what it reported.
    """

    checkpoint: Checkpoint
    metrics: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "FirstFit":
        """Open a finished fit.

        Raises:
            CheckpointError, ManifestError: it has no model, or another one.
        """
        metrics = json.loads((folder / METRICS).read_text())
        return cls(final_checkpoint(folder), metrics)

    def last_step(self, steps: int, accumulate: int) -> int:
        """Return the step after which the refit ends.

        Learning rates are those of the share of the schedule after which the first fit
        was best, so a fit that stopped early is repeated as far as it went.

        Args:
            steps: the refit's schedule, all of its epochs.
            accumulate: steps of one dense update.
        """
        share = self.checkpoint.step / int(self.metrics["train"]["planned_steps"])
        if share == 1:
            return steps
        # Only whole updates: the dense gradients of a part would be dropped. The last
        # step of the schedule is the end of one, however few its steps are.
        updates = max(round(share * steps / accumulate), 1)
        return min(updates * accumulate, steps)

    @property
    def blend(self) -> BlendFit | None:
        """The blend that it chose; None: its settings ask for none."""
        report = self.metrics.get("blend")
        if report is None:
            return None
        figures = {name: report[name] for name in ("rows", "gain", "error")}
        return BlendFit(load_blend(self.checkpoint), **figures)

    @property
    def calibrations(self) -> Calibrations:
        """The calibrations that it fitted."""
        return load_calibrations(self.checkpoint)

    def to_json(self) -> dict[str, Any]:
        """Return what the refit's `metrics.json` says of it."""
        train = self.metrics["train"]
        return {
            "checkpoint": self.metrics["checkpoint"],
            "steps": train["steps"],
            "planned_steps": train["planned_steps"],
            "validation": train["validation"],
            "valid": self.metrics["valid"],
        }
