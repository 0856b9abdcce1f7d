"""The table of a sweep: `sweep.json`, `sweep.md` and one picture.

Test figures are looked at once: they stand there for the chosen variant alone, unless
all of them are asked for.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from torchrec_adrec.runtime.files import write_durably
from torchrec_adrec.sweep.metric import Metric
from torchrec_adrec.sweep.outcome import Outcome, choose, summary
from torchrec_adrec.sweep.plan import Plan
from torchrec_adrec.sweep.runner import Runner

TABLE, PAGE, PICTURE = "sweep.json", "sweep.md", "sweep.png"
MOST_BARS = 40  # of a picture, the best ones
Report = dict[str, Any]


def report_of(
    plan: Plan, outcomes: Sequence[Outcome], runner: Runner, all_test: bool
) -> Report:
    """Return the table as JSON can hold it.

    Args:
        plan: of the sweep.
        outcomes: of its variants.
        runner: that made the runs.
        all_test: whether the test figures of all variants are shown.
    """
    chosen = choose(outcomes, plan.metric)
    return {
        "config": plan.sweep.config,
        "settings": list(plan.common),
        "seeds": list(plan.sweep.seeds),
        "metric": str(plan.metric),
        "better": "higher" if plan.metric.is_higher_better else "lower",
        "variants": [outcome.to_json() for outcome in outcomes],
        "chosen": chosen.variant.name if chosen else None,
        "test": {
            outcome.variant.name: _test(outcome, plan.metric, runner)
            for outcome in outcomes
            if outcome.valid and (all_test or outcome is chosen)
        },
    }


def _test(outcome: Outcome, metric: Metric, runner: Runner) -> Report:
    folders = [runner.run_folder(outcome.variant, seed) for seed in outcome.valid]
    return summary([metric.test(folder) for folder in folders])


def write_report(report: Report, out: Path) -> None:
    """Write the table and the picture into the folder of the sweep."""
    write_durably(out / TABLE, json.dumps(report, indent=1) + "\n")
    write_durably(out / PAGE, "\n".join(_page(report)) + "\n")
    _picture(report, out / PICTURE)


def _page(report: Report) -> Iterator[str]:
    seeds = ", ".join(map(str, report["seeds"]))
    yield f"# Sweep of {report['config']}"
    yield ""
    yield f"Seeds {seeds}. The variant with the best mean of {report['metric']} on the"
    yield f"validation rows is chosen ({report['better']} is better). Mean (standard"
    yield "deviation over the seeds)."
    yield ""
    header, *rows = _rows(report)
    yield from (_line(header), "|---" * len(header) + "|")
    yield from map(_line, rows)
    yield from ("", f"![by variant]({PICTURE})", "", "## Test rows", "")
    if len(report["test"]) > 1:
        yield "All of them were asked for: nothing may be chosen by these figures."
    else:
        yield "Looked at once, for the variant that was chosen."
    yield ""
    for name, figures in report["test"].items():
        cells = "; ".join(f"{key} {_cell(value)}" for key, value in figures.items())
        yield f"- {name}: {cells}"
    failures = list(_failures(report))
    if failures:
        yield from ("", "## Failed", "", *(f"- {line}" for line in failures))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _rows(report: Report) -> Iterator[list[str]]:
    """Yield the header, then a row for each variant, in the order of the file."""
    columns = list(
        dict.fromkeys(
            [_figure(report), *(n for v in report["variants"] for n in v["validation"])]
        )
    )
    yield ["variant", "settings", *columns, ""]
    for variant in report["variants"]:
        settings = ", ".join(f"{k}={v}" for k, v in variant["settings"].items())
        figures = variant["validation"]
        cells = [_cell(figures[n]) if n in figures else "" for n in columns]
        yield [variant["name"], settings, *cells, _remark(variant, report)]


def _figure(report: Report) -> str:
    return str(report["metric"]).rpartition(".")[2]


def _remark(variant: Report, report: Report) -> str:
    if variant["failed"]:
        return f"failed: seed {', '.join(variant['failed'])}"
    if variant["pruned"]:
        return "given up"
    return "chosen" if variant["name"] == report["chosen"] else ""


def _cell(value: Mapping[str, float | None]) -> str:
    spread = "" if value["sd"] is None else f" ({value['sd']:.4f})"
    return f"{value['mean']:.4f}{spread}"


def _failures(report: Report) -> Iterator[str]:
    for variant in report["variants"]:
        for seed, reason in variant["failed"].items():
            yield f"{variant['name']}, seed {seed}: {reason}"


def table_of(report: Report) -> Table:
    """Return the table for a terminal."""
    header, *rows = _rows(report)
    table = Table(*header, title=f"validation {report['metric']}, mean (deviation)")
    for row in rows:
        table.add_row(*row, style="bold" if row[-1] == "chosen" else None)
    return table


def test_lines(report: Report) -> Iterator[str]:
    """Yield what the test rows say, and what failed."""
    for name, figures in report["test"].items():
        cells = ", ".join(f"{key} {_cell(value)}" for key, value in figures.items())
        yield f"test, {name}: {cells}"
    yield from (f"failed: {line}" for line in _failures(report))


def _picture(report: Report, path: Path) -> None:
    """Draw every run as a point and every variant's mean, the best at the top."""
    name = _figure(report)
    variants = [v for v in report["variants"] if v["validation"]]
    sign = 1 if report["better"] == "higher" else -1
    best = sorted(variants, key=lambda v: -sign * v["validation"][name]["mean"])
    rows = list(reversed(best[:MOST_BARS]))
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, variant in enumerate(rows):
        values = [figures[name] for figures in variant["by_seed"].values()]
        axes.plot(values, [height] * len(values), "o", color="grey", markersize=4)
        is_chosen = variant["name"] == report["chosen"]
        color = "tab:red" if is_chosen else "tab:blue"
        axes.plot(variant["validation"][name]["mean"], height, "|", color=color, ms=16)
    axes.set_yticks(range(len(rows)), [v["name"] for v in rows], fontsize=8)
    axes.set(xlabel=f"validation {report['metric']}, a point for each seed")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
