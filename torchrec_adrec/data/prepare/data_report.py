"""What `prepare` says of the data: `report.json` for programs, `report.md` with a
picture for people.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.held_ads import held_table
from torchrec_adrec.data.prepare.leaks import Dependency, column_aucs, future_columns
from torchrec_adrec.data.prepare.odd_columns import hardly_recurring, odd_lines
from torchrec_adrec.data.prepare.spill import ChunkStore
from torchrec_adrec.data.prepare.split_counts import SplitCounts, total
from torchrec_adrec.data.prepare.splits import SPLITS
from torchrec_adrec.data.prepare.vocabulary import FIRST, MISSING, UNKNOWN

DEPENDENCIES_KEPT = 20  # of the strongest
DRIFT_VALUES = 50  # the most frequent values have a share of their own, the rest one
MOSTLY = 0.5  # share of rows
DRIFTS = 0.25  # a stability index above this is commonly called a shift

Report = dict[str, Any]


def report_of(
    data: DataSet,
    store: ChunkStore,
    encoder: Encoder,
    ads: pl.DataFrame,
    tally: SplitCounts,
    found: list[Dependency],
    repeats: dict[str, Any],
    split_by: str,
    seed: int,
) -> Report:
    """Everything that was counted, ready for JSON."""
    schema, bad = encoder.schema, store.bad
    aucs = column_aucs(tally)
    periods = {
        label: [
            tally.counts[f"period_rows:{label}"].tolist(),
            total(tally.counts[f"period_labels:{label}"]),
        ]
        for label in schema.label_names
    }
    return {
        "raw": [str(path) for path in data.files],
        "split_by": split_by,
        "seed": seed,
        "rows_in": store.num_rows + bad.count,
        "bad_rows": {"count": bad.count, "first": bad.first},
        "repaired": tally.repaired(),
        "ads": {"all": len(ads), "in_train": int((ads["impressions"] > 0).sum())},
        "num_embeddings": {f.name: f.num_embeddings for f in schema.bags},
        "schema": schema.fingerprint,
        "splits": {name: _split(tally, name) for name in SPLITS},
        "side_dependencies": [d.model_dump() for d in found[:DEPENDENCIES_KEPT]],
        "column_auc": aucs,
        "drift": {name: _drift(tally, name) for name in aucs},
        "future_columns": [f.model_dump() for f in future_columns(tally, aucs)],
        "hardly_recurring": hardly_recurring(tally),
        "binary_labels": [f.name for f in schema.labels if not f.rule.is_open],
        "rows_in_two_splits": repeats,
        "label_periods": periods,
    }


def _split(tally: SplitCounts, split: str) -> Report:
    rows, mixed = tally.counts.get(f"size:{split}", (0, 0))
    labels = {name: tally.label(split, name) for name in tally.schema.label_names}
    return {
        "rows": int(rows),
        "hash": f"{int(mixed):016x}",
        "observed": {name: rows for name, (rows, _) in labels.items()},
        "label_rate": {name: mean for name, (_, mean) in labels.items()},
        "missing": _shares(tally, split, MISSING),
        "unknown": _shares(tally, split, UNKNOWN),
    }


def _shares(tally: SplitCounts, split: str, number: int) -> dict[str, float]:
    """Share of rows with one id; of a sequence, of rows whose first id is that one.

    A sequence's counts stand one place further on, behind the empty rows.
    """
    at = {f.name: number for f in tally.schema.sparse}
    at |= {f.name: 0 if number == MISSING else 2 for f in tally.schema.sequences}
    if number == MISSING:
        at |= {f.name: MISSING for f in tally.schema.dense_alone}
    shares = {}
    for name, place in at.items():
        rows = tally.counts.get(f"rows:{split}:{name}")
        shares[name] = 0.0 if rows is None else float(rows[place] / max(rows.sum(), 1))
    return shares


def _drift(tally: SplitCounts, name: str) -> float:
    """Population stability index between train and test: sum (p - q) log(p / q)."""
    train = _known(tally, "train", name)
    p, q = _coarse(train, train), _coarse(_known(tally, "test", name), train)
    return float(((p - q) * np.log(p / q)).sum())


def _known(tally: SplitCounts, split: str, name: str) -> Int64s:
    """Rows without a value, then of every known one.

    Unknown values are left out: training has none of them but the rare ones, so they
    would outweigh all else; their shares stand beside.
    """
    empty = np.zeros_like(tally.counts[f"rows:train:{name}"])
    rows = tally.counts.get(f"rows:{split}:{name}", empty)
    if name in {f.name for f in tally.schema.sparse}:
        return np.append(rows[MISSING], rows[FIRST:])
    if name in {f.name for f in tally.schema.sequences}:  # one further on
        return np.append(rows[: MISSING + 2].sum(), rows[FIRST + 1 :])
    return np.asarray(rows)  # a number without ids: missing, then bins


def _coarse(rows: Int64s, by: Int64s) -> Float64s:
    """Shares of missing, of the values most frequent in `by`, and of the others."""
    often = np.argsort(-by[1:], kind="stable")[:DRIFT_VALUES] + 1
    kept = rows[np.append(0, often)]
    # Half a row each, so that a value that is gone does not make it infinite.
    full = np.append(kept, rows.sum() - kept.sum()) + 0.5
    return np.asarray(full / full.sum())


def write_report(report: Report, out: Path) -> None:
    """Write `report.json`, `report.md` and the picture."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text("\n".join(_lines(report)) + "\n")
    draw(report, out / "report.png")


def _lines(report: Report) -> Iterator[str]:
    bad, repeats = report["bad_rows"], report["rows_in_two_splits"]
    sizes = {name: report["splits"][name] for name in SPLITS}
    yield from (
        "# The data",
        "",
        f"Split by {report['split_by']}, seed {report['seed']}.",
        "",
    )
    yield f"{report['rows_in']:,} rows in, {bad['count']:,} of them bad; "
    yield f"{repeats['also_in_train']:,} of {repeats['compared']:,} held-out rows are"
    yield f"equal to a training row in every column{_but(repeats['without'])}.\n"
    labels = list(sizes["train"]["label_rate"])
    yield f"| split | rows | {' | '.join(labels)} | hash |"
    yield "|---" * (len(labels) + 3) + "|"
    for name, about in sizes.items():
        rates = " | ".join(f"{about['label_rate'][label]:.4f}" for label in labels)
        yield f"| {name} | {about['rows']:,} | {rates} | `{about['hash']}` |"
    yield from ("", "![the data](report.png)", "")
    yield from _warnings(report)
    yield from _columns(report)
    yield from dependency_table(report["side_dependencies"])
    yield from held_table(report["held_ads"])
    if bad["first"]:
        yield from ("## Bad rows", "", *(f"- `{line}`" for line in bad["first"]), "")


def _but(names: list[str]) -> str:
    return f" but {', '.join(names)}" if names else ""


def _warnings(report: Report) -> Iterator[str]:
    found = [
        f"- **{f['name']} {f['why']}** ({f['figure']:.3f}): is it known when the ad is"
        " asked for?"
        for f in report["future_columns"]
    ]
    found += [
        f"- {name} has shifted between train and test: {value:.2f}"
        for name, value in report["drift"].items()
        if value > DRIFTS
    ]
    found += [f"- {n}: {c:,} rows repaired" for n, c in report["repaired"].items()]
    found += [f"- {line}" for line in odd_lines(report)]
    found += _mostly_missing(report["splits"])
    if report["varying_ads"]:
        found.append(f"- {report['varying_ads']['line']}")
    if found:
        yield from ("## Look at these", "", *found, "")


def _mostly_missing(splits: Report) -> Iterator[str]:
    """Columns that are missing in most rows of the training or of the test."""
    train, test = (splits[split]["missing"] for split in ("train", "test"))
    filled = [about["missing"] for about in splits.values() if about["rows"]]
    for name, share in train.items():
        if all(missing[name] == 1 for missing in filled):
            yield f"- **{name} is missing in every row**: is it empty in the raw files?"
        elif max(share, test[name]) > MOSTLY:
            shares = f"{share:.1%} of the training rows, {test[name]:.1%} of the test's"
            yield f"- {name} is mostly missing: in {shares}"


def _columns(report: Report) -> Iterator[str]:
    yield from ("## Columns", "")
    yield "Shares of the training and the test rows; AUC of the column alone on the"
    yield "held-out rows; drift as population stability index."
    yield ""
    yield "| column | table rows | missing | unknown | AUC alone | drift |"
    yield "|---|---|---|---|---|---|"
    train, test = report["splits"]["train"], report["splits"]["test"]
    for name, auc in report["column_auc"].items():
        size = f"{report['num_embeddings'].get(name, 0):,}"
        shares = [
            f"{train[kind].get(name, 0):.4f} / {test[kind].get(name, 0):.4f}"
            for kind in ("missing", "unknown")
        ]
        yield f"| {name} | {size} | {' | '.join(shares)} | {auc:.3f} |" + (
            f" {report['drift'][name]:.3f} |"
        )
    yield ""


def dependency_table(found: list[Report], kept: int = 10) -> Iterator[str]:
    """How far the user's side gives the ad away: recall must be read beside it."""
    yield from ("## What the user's columns say of the ad's", "")
    yield "| user | ad | determined | base rate | rows |"
    yield "|---|---|---|---|---|"
    for d in found[:kept]:
        shares = f"{d['determined']:.3f} | {d['base_rate']:.3f} | {d['rows']:,}"
        yield f"| {d['user']} | {d['ad']} | {shares} |"
    yield ""


def draw(report: Report, path: Path) -> None:
    """Label rates over time, and what to know of each column, as one picture."""
    from matplotlib.figure import Figure

    # Fixed margins: a layout that measures all labels takes seconds.
    figure = Figure(figsize=(12, 10))
    figure.subplots_adjust(0.09, 0.09, 0.98, 0.95, wspace=0.15, hspace=0.5)
    grid = figure.subplot_mosaic("AA;BC;BD", height_ratios=(1.2, 1, 1))
    for label, (rows, sums) in report["label_periods"].items():
        rate = np.array(sums) / np.maximum(rows, 1)
        rate[np.array(rows) == 0] = np.nan
        mean = max(sum(sums) / max(sum(rows), 1), 1e-12)
        grid["A"].plot(rate / mean, marker=".", label=label)
    grid["A"].set_title("labels over time, over their mean (first row to last)")
    grid["A"].legend()
    test = report["splits"]["test"]
    names = list(test["missing"])
    at = np.arange(len(names))
    missing = np.array([test["missing"][n] for n in names])
    unknown = np.array([test["unknown"].get(n, 0.0) for n in names])
    grid["B"].barh(at, missing, label="missing", color="lightgray")
    grid["B"].barh(at, unknown, left=missing, label="unknown", color="tab:red")
    grid["B"].set_yticks(at, names, fontsize=6)
    grid["B"].set_title("test rows without a known value")
    grid["B"].legend()
    _bars(grid["C"], report["column_auc"], "AUC of one column alone", 0.5)
    _bars(grid["D"], report["drift"], "drift from train to test", DRIFTS)
    figure.savefig(path, dpi=110)


def _bars(axes: Any, values: dict[str, float], title: str, line: float) -> None:
    best = sorted(values.items(), key=lambda item: -np.nan_to_num(item[1]))[:12]
    axes.bar([name for name, _ in best], [value for _, value in best])
    axes.axhline(line, color="gray", linestyle=":")
    axes.tick_params(axis="x", rotation=60, labelsize=7)
    axes.set_title(title)
