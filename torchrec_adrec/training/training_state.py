"""What a run knows of its own past, kept in every checkpoint beside the tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchrec_adrec.training.precision import MatmulPrecision
from torchrec_adrec.training.stopping import EarlyStopping


@dataclass
class TrainingState:
    """Goes on growing in a run that is resumed.

    Attributes:
        stopping: the evaluations so far.
        curve: (step, mean loss since the point before).
        last_loss: of the last step that was saved.
        initialised: parameters that a warm start left as they were initialised.
        precision: how products are made; None until it was chosen.
    """

    stopping: EarlyStopping
    curve: list[tuple[int, float]] = field(default_factory=list)
    last_loss: float = float("nan")
    initialised: list[str] = field(default_factory=list)
    precision: MatmulPrecision | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `load` takes."""
        return {
            "last_step_loss": self.last_loss,
            "curve": self.curve,
            "validation": self.stopping.history,
            "initialised": self.initialised,
            "precision": self.precision,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint kept."""
        self.curve = [(step, loss) for step, loss in state["curve"]]
        self.last_loss = float(state["last_step_loss"])
        self.stopping.load(state["validation"])
        self.initialised = state["initialised"]
        # JSON knows no named tuples: it comes back as a list.
        self.precision = MatmulPrecision(*state["precision"])
