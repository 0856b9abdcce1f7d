"""A run reports its figures: on the screen, and as Markdown, HTML and JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Column, Table

from torchrec_adrec.evaluation.below import below_baselines
from torchrec_adrec.pipeline.funnel_table import funnel_lines
from torchrec_adrec.pipeline.headline import defined
from torchrec_adrec.pipeline.html_report import html_page
from torchrec_adrec.pipeline.label_tables import label_tables
from torchrec_adrec.pipeline.stage_tables import (
    ads_lines,
    baseline_lines,
    index_lines,
    training_lines,
)
from torchrec_adrec.runs.stages import INDEX, stage_folder
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.schema import AD_ID

Metrics = dict[str, Any]
REPORT, HTML_REPORT, DATA_REPORT = "report.md", "report.html", "data/report.md"
METRICS = "metrics.json"
SHOWN_COLUMNS = 9  # of an ad on a terminal: predictions first, then raw columns
MODELS = {"retrieval": "Towers", "ranking": "Ranker"}
RETRIEVERS = ("towers", "context", "popularity")
BASELINES = {
    "constant": "constant",
    "logistic_regression": "logistic regression",
    "truth": "the rule itself",
}


def _rows(metrics: Metrics) -> Iterator[tuple[str, str]]:
    """Yield every line of the summary: what was measured, and its value."""
    data, baselines = metrics["data"], metrics["baselines"]
    splits = data["splits"]
    sizes = " / ".join(f"{splits[name]['rows']:,}" for name in splits)
    yield "rows in (bad)", f"{data['rows_in']:,} ({data['bad_rows']['count']:,})"
    yield "rows train / valid / test", sizes
    yield (
        "ads (shown in training)",
        f"{data['ads']['all']:,} ({data['ads']['in_train']:,})",
    )
    for name, title in BASELINES.items():
        if name in baselines:
            yield _figures(title, baselines[name]["test"])
    for name, title in MODELS.items():
        title = title.lower()
        for label, figures in metrics[name]["test"].items():
            yield _figures(f"{title}, {label}", figures)
        yield f"{title}: judged and served", served_checkpoint(metrics[name])
    for side, gates in metrics["retrieval"].get("gates", {}).items():
        most_first = sorted(gates.items(), key=lambda gate: -gate[1])
        weights = ", ".join(f"{name} {weight:.3f}" for name, weight in most_first)
        yield f"towers: gates of the {side}'s fields", weights
    if "blend" in metrics["ranking"]:
        yield "click score that serves", served_score(metrics["ranking"]["blend"])
    yield from _recalls(metrics["export"]["test"])
    # In the table too: whoever reads only the end must not miss that a model is bad.
    yield from (("WARNING", line) for line in below_baselines(metrics))
    gate = metrics["index"]
    yield f"index recall@{gate['k']} against brute force", f"{gate['recall']:.4f}"
    serve = metrics["serve"]
    times = serve["milliseconds"].items()
    yield (
        f"ms a request, median of {serve['requests']}",
        ", ".join(f"{name} {value:.2f}" for name, value in times),
    )


def _figures(title: str, figures: dict[str, float]) -> tuple[str, str]:
    """Return a line for one label: a click has an AUC, a value a rank correlation."""
    names = ("auc", "log_loss") if "auc" in figures else ("spearman", "calibration")
    shown = {"auc": "AUC", "log_loss": "log loss"}
    titles = " / ".join(shown.get(name, name) for name in names)
    return f"{title}: test {titles}", " / ".join(defined(figures[n]) for n in names)


def served_score(blend: Metrics) -> str:
    """Say whose click logit serves, and what the validation rows said of a blend."""
    why = f"{blend['gain']:+.5f} (error {blend['error']:.5f})"
    if blend["serves"] == "ranker":
        return f"ranker alone; a blend with the towers gains {why} of log loss"
    weights = f"{blend['ranker']:.2f} ranker + {blend['towers']:.2f} towers"
    return f"{blend['serves']}: {weights}, gains {why} of log loss on validation rows"


def served_checkpoint(metrics: Metrics) -> str:
    """Return which checkpoint is served, and why if it is not the last one."""
    train = metrics["train"]
    origin = Origin.model_validate(metrics["checkpoint"])
    evaluations = len(train["validation"])
    best = f", the best of {evaluations} evaluations" if evaluations else ""
    if evaluations and train.get("judged_by", "log_loss") != "log_loss":
        best += f" by {train['judged_by']}"
    rows = ""
    if "first_fit" in metrics:
        rows = (
            f", refitted on {' + '.join(metrics['trained_on'])}; blend and calibration"
            " are those of the fit on train"
        )
    return f"{origin} of {train['steps']}{best}{rows}"


def _recalls(test: Metrics) -> Iterator[tuple[str, str]]:
    metrics = [test["all"][retriever] for retriever in RETRIEVERS]
    for name in (key for key in metrics[0] if key.startswith("recall@")):
        yield (
            f"{name} of {test['catalog']:,} ads: {' / '.join(RETRIEVERS)}",
            " / ".join(f"{figures[name]:.4f}" for figures in metrics),
        )


def _retrieval(test: Metrics) -> Iterator[str]:
    """Yield the report on retrieval: recall with intervals, a picture, the protocol.

    Ads that training has seen and those that it has not are apart: towers know the
    latter by their features alone.
    """
    yield from ("## Retrieval", "")
    cuts = [k for k in test["all"]["towers"] if k.startswith("recall@")]
    yield f"| queries | way | clicks | {' | '.join(cuts)} | MRR |"
    yield "|---" * (len(cuts) + 4) + "|"
    for group in ("all", "seen_ads", "unseen_ads"):
        for retriever in RETRIEVERS if group in test else ():
            figures = test[group][retriever]
            cells = [_with_interval(figures, name) for name in (*cuts, "mrr")]
            head = f"| {group} | {retriever} | {figures['clicks']:,} |"
            yield f"{head} {' | '.join(cells)} |"
    if cuts:
        yield from ("", "![by popularity](export/recall_by_popularity.png)")
    yield from ("", "How they were measured (docs/evaluation.md):", "")
    yield from (f"- {key}: {value}" for key, value in test["protocol"].items())
    yield ""


def _with_interval(figures: Metrics, name: str) -> str:
    low, high = figures["intervals"][name]  # of 95%
    return f"{figures[name]:.4f} ({low:.4f} to {high:.4f})"


def summary_table(metrics: Metrics) -> Table:
    """Return the summary for a terminal."""
    table = Table("measured", "value", title="torchrec_adrec")
    for row in _rows(metrics):
        table.add_row(*row)
    return table


def wide_console() -> Console:
    """Return a console that is wide enough for the tables, even if it is a file."""
    # rich takes a file for 80 columns wide, and would break every row of the tables.
    return Console(width=max(Console().width, 120))


def ads_table(ads: pl.DataFrame, title: str) -> Table:
    """Return the ranked ads for a terminal, best first, with their first columns."""
    # More columns would squeeze each of them until no value can be read.
    names = [name for name in ads.columns if name != AD_ID][:SHOWN_COLUMNS]
    table = Table("rank", Column(AD_ID, no_wrap=True), *names, title=title)
    for rank, ad in enumerate(ads.iter_rows(named=True), start=1):
        table.add_row(str(rank), str(ad[AD_ID]), *(_shown(ad[n]) for n in names))
    return table


def _shown(value: float | str | list[str] | None) -> str:
    if value is None:
        return "missing"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:.4f}" if isinstance(value, float) else value


def metrics_of(run: Path, stage: str) -> Metrics:
    """Read what a stage has measured."""
    name = {"data": "report.json", "index": "gate.json"}.get(stage, METRICS)
    return dict(json.loads((stage_folder(run, stage) / name).read_text()))


def write_report(
    seed: int, metrics: Metrics, run: Path, ads: pl.DataFrame | None = None
) -> None:
    """Write `metrics.json`, `report.md` and `report.html` of the whole run.

    Args:
        seed: of the run.
        metrics: stage -> what it measured, `serve`, and `funnel` if it was judged.
        run: the folder they are written to.
        ads: the ranked ads of the first example user.
    """
    (run / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
    lines = _lines(seed, metrics, run, ads)
    (run / REPORT).write_text("\n".join(lines) + "\n")
    reports = [run / path for path in (REPORT, DATA_REPORT)]
    texts = {
        path.relative_to(run).as_posix(): path.read_text()
        for path in reports
        if path.is_file()
    }
    page = html_page(run, texts, f"{run.resolve().name}: run report")
    (run / HTML_REPORT).write_text(page)


def _lines(
    seed: int, metrics: Metrics, run: Path, ads: pl.DataFrame | None
) -> Iterator[str]:
    yield from ("# Run report", "")
    yield from (f"Seed {seed}; every setting: `config.yaml`.", "")
    yield from ("| measured | value |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in _rows(metrics))
    yield ""
    if ads is not None:
        yield from ads_lines(ads)
    yield from baseline_lines(metrics["baselines"], BASELINES)
    yield from _retrieval(metrics["export"]["test"])
    if "by_popularity" in metrics["index"]:
        picture = stage_folder(run, INDEX.name).relative_to(run) / "gate.png"
        yield from index_lines(metrics["index"], picture.as_posix())
    if "funnel" in metrics:
        yield from funnel_lines(metrics["funnel"])
    yield from training_lines({name: metrics[name]["train"] for name in MODELS})
    for name, title in MODELS.items():
        yield from (f"## {title}", "")
        yield from (f"![calibration on the test split]({name}/calibration.png)", "")
        # A stage that an older version made has none.
        yield from label_tables(metrics[name].get("details", {}))
    yield f"The data, its odd columns and bad rows: [report]({DATA_REPORT})"
