"""The table of what `rankers.py` has kept, and what is paired with one row of it.

    python benchmarks/ranker_table.py RUN/data FOLDER --name rankers
    python benchmarks/ranker_table.py RUN/data FOLDER --name ad_tokens_wide \
        --reference "wide transformer"

AUC and log loss are means over seeds (standard deviation of the AUC). The intervals are
of the mean difference to the reference, by default LightGBM on the same numbers, over
the seeds that both have: rows are drawn with replacement, the same ones for all seeds
of both (paired bootstrap, 95%).
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import polars as pl
from rankers import ROWS, SPLITS
from rich.console import Console
from rich.table import Table
from sklearn.metrics import log_loss, roc_auc_score
from timing import keep_result

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.evaluation.bootstrap import interval
from torchrec_adrec.schema import Schema

REFERENCE = "lightgbm without ids"  # the better one on validation
DRAWS = 500
Fit = dict[str, Float64s]
Figures = dict[str, float]


def main() -> None:
    """Read the fits, print the table, keep the figures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("data", type=Path, help="a prepared data set")
    arguments.add_argument("folder", type=Path, help="of the fits")
    arguments.add_argument("--name", default="rankers", help="of the result")
    arguments.add_argument("--reference", default=REFERENCE, choices=ROWS)
    args = arguments.parse_args()
    labels = {split: _clicks(args.data, split) for split in SPLITS}
    fits = _fits(args.folder)
    if args.reference not in fits and args.reference != REFERENCE:
        arguments.error(f"{args.folder} has no fits of --reference {args.reference!r}")
    figures = {
        name: [_figures(labels, fit) for fit in of_seeds.values()]
        for name, of_seeds in fits.items()
    }
    gains = {
        name: {
            split: _gains(labels[split], of_seeds, fits[args.reference], split)
            for split in SPLITS
        }
        for name, of_seeds in fits.items()
        if of_seeds.keys() & fits.get(args.reference, {}).keys()
        and name != args.reference
    }
    Console(width=150).print(_table(figures, gains, args.reference))
    keep_result(args.name, {"fits": figures, f"minus {args.reference}": gains})


def _clicks(data: Path, split: str) -> Float64s:
    click = Schema.load(data / "schema.json").label_names[0]
    frame = pl.read_parquet(data / split / "*.parquet", columns=[click])
    return frame[click].to_numpy().astype(np.float64)


def _fits(folder: Path) -> dict[str, dict[str, Fit]]:
    """The fits of each row of the table, by seed."""
    fits: dict[str, dict[str, Fit]] = defaultdict(dict)
    for name in ROWS:
        for path in sorted(folder.glob(f"{name}-[0-9].npz")):
            fits[name][path.stem[-1]] = dict(np.load(path))
    return fits


def _figures(labels: dict[str, Float64s], fit: Fit) -> Figures:
    figures: Figures = {}
    for split, label in labels.items():
        figures[f"{split} AUC"] = float(roc_auc_score(label, fit[split]))
        figures[f"{split} log loss"] = float(log_loss(label, _probability(fit[split])))
    figures["parameters"] = float(fit["parameters"])
    return figures | {"samples/s": float(fit["rows"] / fit["seconds"])}


def _probability(logits: Float64s) -> Float64s:
    return 1 / (1 + np.exp(-logits))


def _gains(
    label: Float64s, fits: dict[str, Fit], reference: dict[str, Fit], split: str
) -> dict[str, list[float]]:
    """AUC and log loss less the reference's, mean over seeds: each and its interval."""
    rng, count = np.random.default_rng(0), len(label)
    drawn = rng.integers(count, size=(DRAWS, count))
    # The first line counts every row once: it is the difference itself.
    times = np.stack(
        [np.ones(count), *(np.bincount(d, minlength=count) for d in drawn)]
    )
    pairs = [
        (
            _bootstrapped(label, fits[seed][split], times),
            _bootstrapped(label, reference[seed][split], times),
        )
        for seed in sorted(fits.keys() & reference.keys())
    ]
    gains = np.mean([one - other for one, other in pairs], axis=0)
    low, high = interval(gains[:, 1:].T)
    return {
        figure: [float(gains[k, 0]), float(low[k]), float(high[k])]
        for k, figure in enumerate(("AUC", "log loss"))
    }


def _bootstrapped(label: Float64s, logits: Float64s, times: Float64s) -> Float64s:
    """AUC and log loss where row i counts `times[:, i]` times, (2, draws).

    The AUC is the share of (positive, negative) pairs in order, equal scores by half.
    """
    order = np.argsort(logits)
    starts = np.flatnonzero(np.diff(logits[order], prepend=-np.inf) > 0)
    positive, negative = (
        np.add.reduceat((times * of_class)[:, order], starts, axis=1)
        for of_class in (label, 1 - label)
    )
    below = negative.cumsum(axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    losses = np.logaddexp(0, logits) - label * logits
    return np.stack(
        [(positive * below).sum(axis=1) / pairs, times @ losses / times.sum(axis=1)]
    )


def _table(
    figures: dict[str, list[Figures]],
    gains: dict[str, dict[str, dict[str, list[float]]]],
    reference: str,
) -> Table:
    seeds = max(map(len, figures.values()))
    table = Table(title=f"{seeds} seeds: mean (standard deviation)")
    names = list(next(iter(figures.values()))[0])
    columns = [*names, *(f"{split} AUC - {reference}" for split in SPLITS)]
    for column in ("row", *columns):
        table.add_column(column, justify="left" if column == "row" else "right")
    for row, runs in figures.items():
        cells = [_cell(name, [run[name] for run in runs]) for name in names]
        paired = [_paired(of_split["AUC"]) for of_split in gains.get(row, {}).values()]
        table.add_row(row, *cells, *paired)
    return table


def _cell(name: str, values: list[float]) -> str:
    if name in ("parameters", "samples/s"):
        return f"{mean(values):,.0f}"
    spread = f" ({stdev(values):.4f})" if "AUC" in name and len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


def _paired(gain: list[float]) -> str:
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*gain)


if __name__ == "__main__":
    main()
