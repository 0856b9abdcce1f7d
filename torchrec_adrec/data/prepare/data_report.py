"""The data report: `report.json` for programs, `report.md` and a picture for people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_adrec.data.prepare.held_ads import held_table
from torchrec_adrec.data.prepare.odd_columns import odd_lines
from torchrec_adrec.data.prepare.splits import SPLITS
from torchrec_adrec.data.prepare.statistics_report import statistics_lines
from torchrec_adrec.runtime.markdown import code

MOSTLY = 0.5  # share of rows
DRIFTS = 0.25  # a stability index above this is commonly called a shift

Report = dict[str, Any]


def write_report(report: Report, out: Path) -> None:
    """Write `report.json`, `report.md` and the picture."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text("\n".join(_lines(report)) + "\n")
    draw(report, out / "report.png")


def _lines(report: Report) -> Iterator[str]:
    bad, repeats = report["bad_rows"], report["rows_in_two_splits"]
    splits = {name: report["splits"][name] for name in SPLITS}
    skipped = ", ".join(repeats["without"])
    exception = f" except {skipped}" if skipped else ""
    rows_in, compared = f"{report['rows_in']:,}", f"{repeats['compared']:,}"
    yield from ("# The data", "")
    yield f"{rows_in} rows were read, {bad['count']:,} of them bad and left out."
    yield f"The others were split by {report['split_by']} (seed {report['seed']})."
    yield from _negatives(report["negatives"])
    yield f"Of {compared} held-out rows, {repeats['also_in_train']:,} are equal to"
    yield f"a training row in every column{exception}."
    yield ""
    labels = list(splits["train"]["label_rate"])
    yield f"| split | rows | {' | '.join(f'mean {n}' for n in labels)} | hash |"
    yield "|---" * (len(labels) + 3) + "|"
    for name, figures in splits.items():
        rates = " | ".join(f"{figures['label_rate'][label]:.4f}" for label in labels)
        yield f"| {name} | {figures['rows']:,} | {rates} | `{figures['hash']}` |"
    yield from ("", "![the data](report.png)", "")
    yield from _warnings(report)
    yield from _columns(report)
    yield from statistics_lines(report.get("statistics"))
    yield from dependency_table(report["side_dependencies"])
    yield from held_table(report["held_ads"])
    if bad["first"]:
        yield from ("## Bad rows", "", "The first ones, with the reason:", "")
        yield from (*(f"- {code(line)}" for line in bad["first"]), "")


def _negatives(figures: Report | None) -> Iterator[str]:
    """Say how negatives were drawn: every rate and metric is that of this mixture."""
    if figures:
        yield (
            f"They are positives; {figures['drawn']:,} negatives were drawn, at most"
            f" {figures['per_positive']} for each ({figures['by']}), so rates, AUC and"
            f" log loss are those of this mixture. {figures['positives_with_fewer']:,}"
            " positives have fewer, because there was nothing else to draw."
        )


def _warnings(report: Report) -> Iterator[str]:
    lines = [_future_line(column) for column in report["future_columns"]]
    lines += [
        f"- The values of {name} have shifted between training and test: drift"
        f" {value:.2f}"
        for name, value in report["drift"].items()
        if value > DRIFTS
    ]
    lines += [
        f"- {name}: values in {rows:,} rows were repaired (data.bounds)"
        for name, rows in report["repaired"].items()
    ]
    lines += [f"- {line}" for line in odd_lines(report)]
    lines += [
        f"- {rows:,} rows have no row in {table}, the first one"
        f" {code(report['unmatched_rows']['first'][0])}"
        for table, rows in report["unmatched_rows"]["tables"].items()
    ]
    lines += _mostly_missing(report["splits"])
    if report["varying_ads"]:
        lines.append(f"- {report['varying_ads']['line']}")
    if lines:
        yield from ("## Look at these", "", *lines, "")


def _future_line(column: Report) -> str:
    """Say in a sentence why a column seems to carry the future (`FutureColumn`)."""
    name, figure = column["name"], column["figure"]
    if column["why"] == "tells the label":
        fact = f"- **{name} predicts the label on its own** (AUC {figure:.3f})"
    else:
        fact = (
            f"- **{name} gives the time away** ({figure:.1%} of the test rows have a"
            " value that training does not know)"
        )
    return f"{fact}: will it be known when an ad is requested?"


def _mostly_missing(splits: Report) -> Iterator[str]:
    """Name the columns that are missing in most rows of training or test."""
    train, test = (splits[split]["missing"] for split in ("train", "test"))
    filled = [figures["missing"] for figures in splits.values() if figures["rows"]]
    for name, share in train.items():
        # A split without rows has shares of 0, which say nothing.
        if all(missing[name] == 1 for missing in filled):
            yield f"- **{name} is missing in every row**: is it empty in the raw files?"
        elif max(share, test[name]) > MOSTLY:
            yield (
                f"- {name} is mostly missing: in {share:.1%} of the training rows and"
                f" {test[name]:.1%} of the test rows"
            )


def _columns(report: Report) -> Iterator[str]:
    yield from ("## Columns", "")
    yield "*Missing* and *unknown* are shares of the training rows / of the test rows."
    yield "*AUC alone* says how well the column alone predicts the click of held-out"
    yield "rows; 0.5 is chance. *Drift* is the population stability index between"
    yield f"training and test; above {DRIFTS:g} is commonly called a shift."
    yield ""
    yield "| column | table rows | missing | unknown | AUC alone | drift |"
    yield "|---|---|---|---|---|---|"
    train, test = report["splits"]["train"], report["splits"]["test"]
    for name, auc in report["column_auc"].items():
        size = f"{report['num_embeddings'].get(name, 0):,}"
        shares = " | ".join(
            f"{train[kind].get(name, 0):.4f} / {test[kind].get(name, 0):.4f}"
            for kind in ("missing", "unknown")
        )
        drift = report["drift"][name]
        yield f"| {name} | {size} | {shares} | {auc:.3f} | {drift:.3f} |"
    yield ""


def dependency_table(dependencies: list[Report], kept: int = 10) -> Iterator[str]:
    """Yield the lines of a Markdown table of some `leaks.Dependency`.

    Args:
        dependencies: the dumped models, the strongest first.
        kept: the number of rows in the table.
    """
    yield from ("## How well user columns determine ad columns", "")
    yield "*Determined* is the share of rows whose ad value is the most frequent one"
    yield "for their user value, *base rate* the share of the most frequent ad value of"
    yield "all. The further the first exceeds the second, the less a high recall means."
    yield ""
    yield "| user column | ad column | determined | base rate | rows |"
    yield "|---|---|---|---|---|"
    for d in dependencies[:kept]:
        shares = f"{d['determined']:.3f} | {d['base_rate']:.3f} | {d['rows']:,}"
        yield f"| {d['user']} | {d['ad']} | {shares} |"
    yield ""


def draw(report: Report, path: Path) -> None:
    """Draw the label rates over time and the figures of each column as one picture."""
    from matplotlib.figure import Figure  # slow to import, and only one rank draws

    # Fixed margins: a layout that measures all labels takes seconds.
    figure = Figure(figsize=(12, 10))
    figure.subplots_adjust(0.09, 0.09, 0.98, 0.95, wspace=0.15, hspace=0.5)
    grid = figure.subplot_mosaic("AA;BC;BD", height_ratios=(1.2, 1, 1))
    _draw_periods(grid["A"], report["label_periods"])
    _draw_unknown(grid["B"], report["splits"]["test"])
    _draw_bars(grid["C"], report["column_auc"], "AUC of each column alone", 0.5)
    _draw_bars(grid["D"], report["drift"], "drift from training to test", DRIFTS)
    figure.savefig(path, dpi=110)


def _draw_periods(axes: Any, label_periods: Report) -> None:
    for label, (rows, sums) in label_periods.items():
        rate = np.array(sums) / np.maximum(rows, 1)
        rate[np.array(rows) == 0] = np.nan
        mean = max(sum(sums) / max(sum(rows), 1), 1e-12)
        axes.plot(rate / mean, marker=".", label=label)
    axes.set_title("mean label over time, relative to that of all rows")
    axes.legend()


def _draw_unknown(axes: Any, test: Report) -> None:
    names = list(test["missing"])
    positions = np.arange(len(names))
    missing = np.array([test["missing"][n] for n in names])
    unknown = np.array([test["unknown"].get(n, 0.0) for n in names])
    axes.barh(positions, missing, label="missing", color="lightgray")
    axes.barh(positions, unknown, left=missing, label="unknown", color="tab:red")
    axes.set_yticks(positions, names, fontsize=6)
    axes.set_title("share of test rows without a known value")
    axes.legend()


def _draw_bars(axes: Any, values: dict[str, float], title: str, line: float) -> None:
    """Draw the twelve largest values, and a line to compare them with."""
    largest = sorted(values.items(), key=lambda item: -np.nan_to_num(item[1]))[:12]
    axes.bar([name for name, _ in largest], [value for _, value in largest])
    axes.axhline(line, color="gray", linestyle=":")
    axes.tick_params(axis="x", rotation=60, labelsize=7)
    axes.set_title(title)
