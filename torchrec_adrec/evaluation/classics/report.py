"""What `adrec evaluate classics` measures and keeps in the folder of a run."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.methods import METHODS, run_method
from torchrec_adrec.evaluation.classics.protocol import ResultTable
from torchrec_adrec.evaluation.classics.towers import run_towers
from torchrec_adrec.runs.stages import RETRIEVAL, record_of

log = logging.getLogger(__name__)
FOLDER, FIGURES, PICTURE = "classics", "metrics.json", "classics.png"
TOWERS = "towers"
TITLES = {
    "full": "full ranking: all ads but those that the user has clicked",
    "sampled": "SAMPLED: each held-out ad among 100 drawn ones; not to be compared with"
    " full ranking",
}
Report = dict[str, Any]


def evaluate_classics(run: Path, names: Sequence[str] | None, seed: int) -> Report:
    """Fit and judge the methods, and write figures and picture after each of them.

    Args:
        run: the folder of the run.
        names: of `METHODS`, or `TOWERS`; None: all that the run allows.
        seed: of the methods.

    Returns:
        `data`, `seed`, `methods`, and the `tables` of both protocols.

    Raises:
        ConfigError: a method is unknown, or the data do not allow it.
        DataError: the data do not allow it.
    """
    data = Interactions.load(run / "data")
    report: Report = {"data": sizes(data), "seed": seed, "methods": {}}
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    for name in names or all_names(run, data.in_time_order):
        log.info("%s", name)
        report["methods"][name] = (
            run_towers(run, data) if name == TOWERS else run_method(name, data, seed)
        )
        report["tables"] = {key: table(report, key).rows for key in TITLES}
        partial = folder / f"{FIGURES}.partial"
        partial.write_text(json.dumps(report, indent=1))
        partial.replace(folder / FIGURES)
        picture(report, folder / PICTURE)
    return report


def all_names(run: Path, data_in_time_order: bool) -> list[str]:
    """Every method that this run allows; the towers where they are trained."""
    names = [n for n, m in METHODS.items() if data_in_time_order or not m.needs_time]
    return names + ([TOWERS] if record_of(run / RETRIEVAL.name) else [])


def sizes(data: Interactions) -> Report:
    """How many users, ads and clicks there are."""
    clicks = {split: int(table.nnz) for split, table in data.splits.items()}
    counts = {"users": len(data.users), "ads": len(data.ids)}
    left_out = {
        "left_out_as_repeated": dict(data.repeated),
        "left_out_without_user": dict(data.nameless),
    }
    return {**counts, "clicks": clicks, **left_out}


def table(report: Report, protocol: str) -> ResultTable:
    """The results of one protocol."""
    results = ResultTable()
    for name, figures in report["methods"].items():
        if protocol in figures:
            results.add(name, figures[protocol])
    return results


def picture(report: Report, path: Path) -> None:
    """Draw NDCG@10 of full ranking, and HR@10 by the length of the history.

    Args:
        report: as `evaluate_classics` returns it.
        path: of the file.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    rows = dict(reversed(table(report, "full").rows.items()))
    bars.barh(list(rows), [row["ndcg@10"] for row in rows.values()])
    bars.set(xlabel="NDCG@10", title="full ranking")
    for name, figures in report["methods"].items():
        cold = figures.get("cold_start")
        if cold:
            heights = [values["hr@10"] for values in cold.values()]
            lines.plot(np.arange(len(cold)), heights, "o-", label=name)
            lines.set_xticks(np.arange(len(cold)), list(cold))
    lines.set(xlabel="known clicks of a new user", ylabel="HR@10", title="cold start")
    if lines.lines:
        lines.legend()
    sizes_ = report["data"]
    figure.suptitle(f"{sizes_['users']:,} users, {sizes_['ads']:,} ads")
    figure.savefig(path, dpi=120)
