"""Pictures of a run: what people look at rather than read."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from torchrec_adrec.evaluation.metrics import Floats

matplotlib.use("Agg")
BINS = 20


def loss_curve(curve: Sequence[tuple[int, float]], title: str, path: Path) -> None:
    """Loss over steps, as PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True))
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def calibration_curve(
    probability: Floats, label: Floats, title: str, path: Path
) -> None:
    """Observed click rate over predicted, in bins of equal size, as PNG."""
    order = np.argsort(probability)
    bins = [b for b in np.array_split(order, BINS) if len(b)]
    predicted = [probability[b].mean() for b in bins]
    observed = [label[b].mean() for b in bins]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    top = max(*predicted, *observed)
    axes.plot([0, top], [0, top], "--", color="grey", label="perfect")
    axes.plot(predicted, observed, "o-", label=f"{len(label):,} rows, {BINS} bins")
    axes.set(xlabel="predicted", ylabel="observed", title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
