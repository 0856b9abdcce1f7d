"""Does the second stage make the list better? Towers, ranker and what is served.

    python benchmarks/second_stage.py configs/synthetic_demo.yaml
    python benchmarks/second_stage.py configs/kuairand.yaml --set data.raw=FOLDER

For every seed the data are prepared, and towers and ranker trained as `adrec run` does
it, on one rank in this process. The table has the click's AUC and log loss on the test
rows of the towers alone, of the ranker alone, and of the score that is served, which
`ranking.blend` chose on the validation rows; those of towers and served on the
validation rows stand first, for whoever chooses settings. A known world adds what its
columns allow (docs/known_world.md), on the days that training saw, of up to 12,000 test
rows.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from seeds import Spread, cell_of, spread_of
from sklearn.metrics import log_loss, roc_auc_score
from timing import keep_result

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.adapters import open_data
from torchrec_adrec.data.adapters.synthetic import TRUTH
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.runs.stage_folder import make_run, stage_workspace
from torchrec_adrec.runs.stages import DATA, RANKING, RETRIEVAL
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.tasks.sharded import final_checkpoint
from torchrec_adrec.training.refit import fit_stage

SCORES = ("towers", "ranker", "served", "columns")
VALIDATION = ("validation towers", "validation served")  # what settings are chosen by
ROWS = 12_000  # of the test split that the attainable figures are taken of
Figures = dict[str, float]


def main() -> None:
    """Train for each seed, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/second_stage"))
    parser.add_argument("--name", help="of the result; default: the config's")
    args = parser.parse_args()
    name = args.name or f"second_stage_{args.config.stem}"
    runs: list[dict[str, Figures]] = []
    with process_group("cpu") as process:
        for seed in args.seeds:
            config = load_config(args.config, [*args.set, f"seed={seed}"])
            runs.append(train(config, args.out / f"{name}-{seed}", process))
            print(seed, runs[-1], flush=True)
            # Kept after each seed: a later one may be interrupted.
            settings = {"config": args.config.name, "set": args.set}
            seeds = args.seeds[: len(runs)]
            results = {"seeds": seeds, "summary": summary(runs), "runs": runs}
            keep_result(name, {**settings, **results})
    Console(width=120).print(table_of(name, runs))


def train(config: Config, run: Path, process: Process) -> dict[str, Figures]:
    """Make the stages that are judged here, and collect their test figures."""
    shutil.rmtree(run, ignore_errors=True)
    make_run(run)
    began = time.perf_counter()
    with stage_workspace(DATA, config, run) as folder:
        data = open_data(config.data, config.seed, folder, SingleProcess())
        prepare(config.data, data, folder, config.seed)
    with stage_workspace(RETRIEVAL, config, run, process) as folder:
        towers = fit_stage("retrieval", config, process, run / "data", folder)
    with stage_workspace(RANKING, config, run, process) as folder:
        final = final_checkpoint(run / "retrieval")
        ranker = fit_stage("ranking", config, process, run / "data", folder, final)
    return {
        "validation towers": _click(towers["valid"]),
        "validation served": _click(ranker.get("first_fit", ranker)["valid"]),
        "towers": _click(towers["test"]),
        "ranker": _click({"click": ranker["blend"]["ranker_alone"]}),
        "served": _click(ranker["test"]),
        "weights": {name: ranker["blend"][name] for name in ("ranker", "towers")},
        "validation": {name: ranker["blend"][name] for name in ("gain", "error")},
        "seconds": {"all stages": time.perf_counter() - began},
    } | attainable(run / "data")


def _click(labels: dict[str, Any]) -> Figures:
    figures = next(iter(labels.values()))
    return {"auc": figures["auc"], "log loss": figures["log_loss"]}


def attainable(data: Path) -> dict[str, Figures]:
    """Judge what the columns of a known world tell; nothing of other data."""
    if not (data / TRUTH).exists():
        return {}
    known = KnownRows.of(data)
    known = known.every(-(-len(known.rows) // ROWS))
    clicked = known.truth["engagement"].is_not_null().to_numpy()
    p = known.attainable("train")
    figures = {"auc": roc_auc_score(clicked, p), "log loss": log_loss(clicked, p)}
    return {"columns": {name: float(value) for name, value in figures.items()}}


def summary(runs: list[dict[str, Figures]]) -> dict[str, dict[str, Spread]]:
    """Return mean and standard deviation over seeds of every score's figures."""
    return {
        score: {
            key: spread_of([run[score][key] for run in runs])
            for key in ("auc", "log loss")
        }
        for score in (*VALIDATION, *SCORES)
        if score in runs[0]
    }


def table_of(name: str, runs: list[dict[str, Figures]]) -> Table:
    """One line for each score; every seed's AUC, and the mean of both figures."""
    table = Table(title=f"{name}, {len(runs)} seeds")
    for column in ("score", *(f"AUC {i}" for i in range(len(runs))), "AUC", "log loss"):
        table.add_column(column)
    for score, figures in summary(runs).items():
        cells = [f"{run[score]['auc']:.4f}" for run in runs]
        spreads = map(cell_of, figures.values())
        table.add_row(score, *cells, *spreads)
    return table


if __name__ == "__main__":
    main()
