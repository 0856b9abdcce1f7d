"""The recommenders of the literature as tables on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from torchrec_adrec.evaluation.classics.report import TITLES
from torchrec_adrec.evaluation.classics.report import table as results_of

METRICS = tuple(
    f"{m}@{k}" for m in ("hr", "recall", "ndcg", "mrr") for k in (5, 10, 20)
)


def print_classics(report: dict[str, Any], console: Console) -> None:
    """Print a table for each protocol, and one of cold start."""
    for protocol, title in TITLES.items():
        table = Table("method", *METRICS, title=title)
        for name, row in results_of(report, protocol).rows.items():
            table.add_row(name, *(f"{row[metric]:.4f}" for metric in METRICS))
        if table.rows:
            console.print(table)
    cold = {
        name: figures["cold_start"]
        for name, figures in report["methods"].items()
        if "cold_start" in figures
    }
    if cold:
        lengths = next(iter(cold.values()))
        table = Table(
            "method", *lengths, title="HR@10 by the known clicks of a new user"
        )
        for name, of_method in cold.items():
            table.add_row(name, *(f"{of_method[n]['hr@10']:.4f}" for n in lengths))
        console.print(table)
    counts = report["data"]
    console.print(
        f"{counts['users']:,} users, {counts['ads']:,} ads, clicks {counts['clicks']};"
        f" left out as repeats of an earlier one {counts['left_out_as_repeated']};"
        f" equal scores count against the held-out ad; seed {report['seed']}",
        highlight=False,
        soft_wrap=True,
    )
