"""What a finished fit leaves in the folder of its stage."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from torchrec_adrec.evaluation.pictures import loss_curve
from torchrec_adrec.models.tower import gate_weights
from torchrec_adrec.runtime.crashes import endings
from torchrec_adrec.runtime.files import write_durably
from torchrec_adrec.tasks.sharded import METRICS

log = logging.getLogger(__name__)


def gates_of(model: nn.Module) -> dict[str, Any]:
    """Return the `gates` of fused towers for the metrics; of others nothing."""
    gates = gate_weights(model)
    return {"gates": gates} if gates else {}


def restarts_report(restarts: int) -> dict[str, Any]:
    """Return how often the ranks were started again, and what ended them before."""
    after = endings()[-restarts:] if restarts else []
    return {"restarts": restarts, "restarted_after": after}


def write_report(
    folder: Path, metrics: dict[str, Any], curve: Sequence[tuple[int, float]]
) -> None:
    """Write `metrics.json` and the picture of the loss; log the gates. One rank alone.

    Args:
        folder: of the stage.
        metrics: of the model that is served.
        curve: the training loss by step.
    """
    task = metrics["task"]
    for side, weights in metrics.get("gates", {}).items():
        line = ", ".join(f"{name} {w:.3f}" for name, w in weights.items())
        log.info(f"{task}: gates of the {side}'s fields: {line}")
    write_durably(folder / METRICS, json.dumps(metrics, indent=1) + "\n")
    loss_curve(curve, f"{task}: training loss", folder / "loss.png")
