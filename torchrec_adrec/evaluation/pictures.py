"""Pictures of a run: what people look at rather than read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from torchrec_adrec.arrays import Float64s

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
    probability: Float64s, label: Float64s, title: str, path: Path
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


def recall_by_popularity(judged: Mapping[str, Any], path: Path) -> None:
    """Recall of the clicked ad by its popularity, with 95% intervals, as PNG.

    Args:
        judged: `evaluation.retrieval.retrieval_metrics`, with at least one Recall@K:
            shown is that at 100, in small catalogs the largest.
    """
    ways = [n for n in judged["all"] if n != "differences"]
    names = [n for n in judged["all"][ways[0]] if n.startswith("recall@")]
    shown = "recall@100" if "recall@100" in names else names[-1]
    groups = dict(judged["deciles"])
    if "unseen_ads" in judged:
        groups["unseen"] = judged["unseen_ads"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for shift, way in enumerate(ways):
        at = np.arange(len(groups)) + (shift - 1) / 8
        mean = np.array([group[way][shown] for group in groups.values()])
        ends = np.array([g[way]["intervals"][shown] for g in groups.values()]).T
        around = np.abs(ends - mean)
        axes.errorbar(at, mean, around, fmt="o", capsize=2, label=way)
    clicks = [group[ways[0]]["clicks"] for group in groups.values()]
    ticks = [f"{n}\n{count:,}" for n, count in zip(groups, clicks, strict=True)]
    axes.set_xticks(range(len(groups)), ticks, fontsize=8)
    axes.set(
        xlabel="tenth of the training impressions (1: most shown), clicks below",
        ylabel=shown,
        title=f"{shown} of {judged['catalog']:,} ads, 95% intervals",
    )
    axes.legend()
    figure.savefig(path, dpi=120)
