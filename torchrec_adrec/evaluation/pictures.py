"""Pictures of a run, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("Agg")


def loss_curve(curve: Sequence[tuple[int, float]], title: str, path: Path) -> None:
    """Draw the loss over the steps."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True))
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def reliability_picture(
    labels: Mapping[str, Sequence[Mapping[str, Any]]], title: str, path: Path
) -> None:
    """Draw what was observed over what was predicted, one panel for each label.

    On the dashed line predictions mean what they say; below it they are too high. Bars
    are two standard errors.

    Args:
        labels: the bins of each, as `calibration_metrics.Bin.to_json` gives them.
        title: of the picture.
        path: of the file.
    """
    figure = Figure(figsize=(5 * len(labels), 5), layout="constrained")
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    for axes, (label, bins) in zip(panels, labels.items(), strict=True):
        names = ("predicted", "observed", "error", "rows")
        predicted, observed, error, rows = (
            np.array([b[name] for b in bins]) for name in names
        )
        top = max(predicted.max(), observed.max())
        axes.plot([0, top], [0, top], "--", color="grey", label="perfect")
        axes.errorbar(predicted, observed, 2 * error, fmt="none", color="lightgrey")
        axes.plot(predicted, observed, "o-", label=f"{rows.sum():,} rows")
        axes.set(xlabel="predicted", ylabel="observed", title=label)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def recall_by_popularity(judged: Mapping[str, Any], path: Path) -> None:
    """Draw the recall of the clicked ad by its popularity, with 95% intervals.

    Args:
        judged: what `evaluation.retrieval.retrieval_metrics` returned, with at least
            one Recall@K. The one at 100 is drawn, or in small catalogs the largest.
        path: of the file.
    """
    methods = [n for n in judged["all"] if n != "differences"]
    names = [n for n in judged["all"][methods[0]] if n.startswith("recall@")]
    metric = "recall@100" if "recall@100" in names else names[-1]
    groups = dict(judged["deciles"])
    if "unseen_ads" in judged:
        groups["unseen"] = judged["unseen_ads"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, method in enumerate(methods):
        x = np.arange(len(groups)) + (i - 1) / 8  # side by side, else bars overlap
        mean = np.array([group[method][metric] for group in groups.values()])
        ends = np.array([g[method]["intervals"][metric] for g in groups.values()]).T
        axes.errorbar(x, mean, np.abs(ends - mean), fmt="o", capsize=2, label=method)
    clicks = [group[methods[0]]["clicks"] for group in groups.values()]
    ticks = [f"{n}\n{count:,}" for n, count in zip(groups, clicks, strict=True)]
    axes.set_xticks(range(len(groups)), ticks, fontsize=8)
    axes.set(
        xlabel="tenth of the training impressions (1: most shown), clicks below",
        ylabel=metric,
        title=f"{metric} of {judged['catalog']:,} ads, 95% intervals",
    )
    axes.legend()
    figure.savefig(path, dpi=120)


def gate_picture(gate: Mapping[str, Any], path: Path) -> None:
    """Draw an index's recall by popularity, and with fewer and fewer eligible ads.

    Args:
        gate: as `index.manifest.Gate` is written.
        path: of the file.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    popularity, filtered = figure.subplots(1, 2, sharey=True)
    groups = {"all": gate, **gate["by_popularity"]}
    recall, low, high = (
        np.array([group[name] for group in groups.values()])
        for name in ("recall", "low", "high")
    )
    # An interval by draws may end just beside a mean of few distinct values.
    ends = np.maximum([recall - low, high - recall], 0)
    popularity.errorbar(range(len(groups)), recall, ends, fmt="o", capsize=2)
    popularity.set_xticks(range(len(groups)), list(groups), fontsize=8)
    popularity.set(xlabel="tenth of the training impressions (1: most shown)")
    levels = [{**gate, "share": 1}, *gate["filtered"]]
    filtered.plot(*zip(*((g["share"], g["recall"]) for g in levels), strict=True), "o-")
    filtered.set(xscale="log", xlabel="share of the ads that are eligible")
    for axes in (popularity, filtered):
        axes.axhline(gate["target_recall"], linestyle="--", color="grey")
        axes.grid(alpha=0.3)
    popularity.set(ylabel=f"recall@{gate['k']}")
    times = ", ".join(f"{name} {ms:.2f}" for name, ms in gate["milliseconds"].items())
    figure.suptitle(f"recall against brute force, target dashed; ms a search: {times}")
    figure.savefig(path, dpi=120)


def kinds_picture(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw kinds of index by the time of a search and the bytes of an ad.

    Args:
        rows: as `index.compare.Compared` is written, those that reached the target.
        title: of the picture.
        path: of the file.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        time, size = row["milliseconds"]["p50"], row["bytes_per_ad"]
        axes.plot(time, size, "o")
        axes.annotate(row["kind"], (time, size), fontsize=8)
    axes.set(xscale="log", xlabel="ms a query, median", ylabel="bytes an ad")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def funnel_picture(report: Mapping[str, Any], path: Path) -> None:
    """Draw where the funnel loses worth, and what other lists are worth.

    Args:
        report: as `evaluation.funnel.report.report_of` returns it.
        path: of the file.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    steps, rivals = figure.subplots(1, 2)
    lost = {name: x["share"] for name, x in report["losses"].items() if name != "total"}
    ends = 1 - np.cumsum([0, *lost.values()])
    names = ["oracle", *(f"{name} loss" for name in lost), "served"]
    steps.bar(names[:1], 1, color="grey")
    steps.bar(names[1:-1], list(lost.values()), bottom=ends[1:], color="tab:red")
    steps.bar(names[-1:], ends[-1], color="tab:blue")
    for place, share in enumerate([1, *lost.values(), ends[-1]]):
        height = max(ends[max(place - 1, 0)], ends[min(place, len(lost))])
        steps.annotate(f"{share:.3f}", (place, height), ha="center", va="bottom")
    steps.set(ylabel="share of the oracle's worth", ylim=(min(0, *ends), 1.1))
    steps.tick_params(axis="x", labelrotation=20)
    rows = dict(reversed(report["rows"].items()))
    share = np.array([row["share"] for row in rows.values()])
    low, high = np.array([row["share_interval"] for row in rows.values()]).T
    # An interval by draws may end just beside a mean of few distinct values.
    bars = np.maximum([share - low, high - share], 0)
    rivals.barh(list(rows), share, xerr=bars, capsize=2)
    rivals.set(xlabel="share of the oracle's worth, 95% over users")
    protocol = report["protocol"]
    figure.suptitle(
        f"first {protocol['top']} of {protocol['ads']:,} ads,"
        f" {protocol['candidates']} candidates, {protocol['users']} held-out users"
    )
    figure.savefig(path, dpi=120)
