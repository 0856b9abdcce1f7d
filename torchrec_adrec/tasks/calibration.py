"""What a fitted calibration does to a prediction, and how a checkpoint keeps it.

Training fits it on the validation rows (`training/calibrate.py`) and puts it into the
folder of the checkpoint that is served, beside its tensors. Evaluation and serving take
it from there, so what is reported is what is served.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from torchrec_adrec.distributed.checkpoint_files import Checkpoint, attach, attachment
from torchrec_adrec.errors import CheckpointError, reason

FILE = "calibration.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Line(_Frozen):
    """sigmoid(slope * logit + intercept): keeps the order of predictions.

    Temperature scaling (Guo et al., ICML 2017) has no intercept, Platt's (1999) has.
    """

    kind: Literal["temperature", "platt"]
    slope: Annotated[float, Field(gt=0)]
    intercept: float = 0.0

    def apply(self, logits: Tensor, predicted: Tensor) -> Tensor:
        """Calibrate the predictions of some logits, both (B,)."""
        return torch.sigmoid(self.slope * logits + self.intercept)


class Steps(_Frozen):
    """Probabilities at some logits, linear in between: isotonic regression.

    It never turns an order round, but it may make different predictions equal.
    Zadrozny and Elkan, KDD 2002.
    """

    kind: Literal["isotonic"]
    logits: Annotated[tuple[float, ...], Field(min_length=1)]
    probabilities: tuple[float, ...]

    def apply(self, logits: Tensor, predicted: Tensor) -> Tensor:
        """Calibrate the predictions of some logits, both (B,)."""
        values = np.interp(logits.numpy(), self.logits, self.probabilities)
        return torch.from_numpy(values).to(predicted.dtype)


class Ratio(_Frozen):
    """A value is multiplied by a factor, so that the mean is right."""

    kind: Literal["ratio"]
    factor: Annotated[float, Field(gt=0)]

    def apply(self, logits: Tensor, predicted: Tensor) -> Tensor:
        """Calibrate the predictions of some logits, both (B,)."""
        return self.factor * predicted


Calibration = Annotated[Line | Steps | Ratio, Field(discriminator="kind")]
Calibrations = Mapping[str, Line | Steps | Ratio]
"""By the name of the label; a label without one is served as the model predicts it."""
_ADAPTER: TypeAdapter[dict[str, Line | Steps | Ratio]] = TypeAdapter(
    dict[str, Calibration]
)


def to_json(calibrations: Calibrations) -> dict[str, Any]:
    """Return what a checkpoint keeps."""
    return {name: one.model_dump(mode="json") for name, one in calibrations.items()}


def save_calibrations(checkpoint: Checkpoint, calibrations: Calibrations) -> None:
    """Put calibrations into the folder of a checkpoint. On one rank only."""
    attach(checkpoint, FILE, to_json(calibrations))


def load_calibrations(checkpoint: Checkpoint) -> Calibrations:
    """Read the calibrations of a checkpoint; none, if its settings ask for none.

    Raises:
        CheckpointError: the file is damaged, or missing although they ask for one.
    """
    saved = attachment(checkpoint, FILE)
    settings = checkpoint.state.get("config", {}).get("ranking", {})
    is_ranker = checkpoint.state.get("task") == "ranking"
    expected = settings.get("calibration", "none") if is_ranker else "none"
    if saved is None and expected != "none":
        # Without it the model's own numbers would be served, unannounced.
        raise CheckpointError(
            f"{checkpoint.path} has no {FILE}, expected one of ranking.calibration ="
            f" {expected}: it is not the checkpoint that is served, or training did"
            " not end; run `adrec train ranking`"
        )
    try:
        return _ADAPTER.validate_python(saved or {})
    except ValidationError as error:
        raise CheckpointError(f"{checkpoint.path / FILE}: {reason(error)}") from None
