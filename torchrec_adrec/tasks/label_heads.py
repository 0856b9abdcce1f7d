"""What the model side knows of a kind of label: its loss, its prediction, its scale.

A ranker's logit means nothing by itself. The kind of its label says what the logit is
trained to (`loss`) and what it tells whoever asks for a score (`predict`). Both stand
in one class, so that they cannot speak of different units.
"""

from typing import Protocol

import torch
from torch import Tensor

from torchrec_adrec.errors import PredictionError
from torchrec_adrec.losses.mean import Share
from torchrec_adrec.losses.pointwise import click_loss, value_loss
from torchrec_adrec.schema import Label
from torchrec_adrec.tasks.calibration import Calibrations


class LabelHead(Protocol):
    """One kind of label, from the logit on.

    Attributes:
        weight: of the loss, where the settings give none.
    """

    weight: float

    def loss(
        self, label: Label, logits: Tensor, observed: Tensor, weights: Tensor
    ) -> Share:
        """Compute this rank's share of the mean loss.

        Args:
            label: with what `prepare` fitted of it.
            logits: (B,).
            observed: (B,) labels, NaN where not observed.
            weights: (B,).
        """

    def predict(self, label: Label, logits: Tensor) -> Tensor:
        """Turn logits into predictions of the label, in its own unit."""


class BinaryHead:
    """A probability; the logit is its log odds."""

    weight = 0.5

    def loss(
        self, label: Label, logits: Tensor, observed: Tensor, weights: Tensor
    ) -> Share:
        """See `LabelHead`."""
        return click_loss(logits, observed, weights)

    def predict(self, label: Label, logits: Tensor) -> Tensor:
        """See `LabelHead`."""
        return torch.sigmoid(logits)


class ValueHead:
    """An expected value; the logit is the log of its ratio to the training mean.

    Without that scale a label in milliseconds would outweigh one in seconds a thousand
    times.
    """

    weight = 0.3

    def loss(
        self, label: Label, logits: Tensor, observed: Tensor, weights: Tensor
    ) -> Share:
        """See `LabelHead`."""
        # `predict` multiplies by the same mean: both or neither.
        return value_loss(logits, observed / label.mean, weights)

    def predict(self, label: Label, logits: Tensor) -> Tensor:
        """See `LabelHead`."""
        return label.mean * torch.exp(logits)


LABEL_HEADS: dict[str, LabelHead] = {"binary": BinaryHead(), "value": ValueHead()}


def prediction(
    label: Label, logits: Tensor, calibrations: Calibrations | None = None
) -> Tensor:
    """Predict a label from its logits, (B,) -> (B,).

    Args:
        label: the label.
        logits: (B,) of the model.
        calibrations: of the checkpoint; None: the model's own predictions.

    Raises:
        PredictionError: one is not finite.
    """
    # A NaN would be sorted somewhere into the candidates, and nobody would know.
    predicted = LABEL_HEADS[label.kind].predict(label, logits)
    wrong = ~(logits.isfinite() & predicted.isfinite())
    if wrong.any():
        raise PredictionError(
            f"{int(wrong.sum())} of {len(logits)} predictions of {label.name} are not"
            f" finite (one is {predicted[wrong][0]:g}, of a logit"
            f" {logits[wrong][0]:g}): `adrec checkpoint inspect` shows whether the"
            " weights are; train again"
        )
    calibration = (calibrations or {}).get(label.name)
    return predicted if calibration is None else calibration.apply(logits, predicted)
