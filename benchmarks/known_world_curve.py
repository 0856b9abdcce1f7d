"""How near the served score comes to what the columns allow, over the number of rows.

    python benchmarks/known_world_curve.py
    python benchmarks/known_world_curve.py --rows 120000 --seeds 0 1 2 --name curve_120k

One world with the settings of `configs/known_world_curve.yaml`, of which ever more rows
are logged: the same ads and users, so what grows is what is known of each. For every
number of rows towers and ranker are trained as `adrec run` does it, on one rank in this
process. The table has the click's AUC on the test rows (a tenth, the latest) of the
towers, of the ranker and of the served score. Its last columns are over all clicks that
could have been drawn in up to 20,000 of these rows, which leaves out the noise of the
draw: what the columns allow on the days that training saw (docs/known_world.md), the
served score, and how far it is below.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from second_stage import Figures, train
from seeds import shown
from timing import keep_result

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.evaluation.known_world import expected_auc
from torchrec_adrec.training.open_evaluator import open_evaluator

CONFIG = Path(__file__).parents[1] / "configs/known_world_curve.yaml"
ROWS = (60_000, 120_000, 250_000, 500_000, 1_000_000)
SCORES = ("towers", "ranker", "served")
JUDGED = 20_000  # test rows that the expected AUCs are taken of, or fewer
Run = dict[str, Figures]


def main() -> None:
    """Train for every number of rows and seed, print the curve, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/known_world_curve"))
    parser.add_argument("--name", default="known_world_curve", help="of the result")
    args = parser.parse_args()
    curve: dict[int, list[Run]] = {}
    with process_group("cpu") as process:
        for rows in args.rows:
            for seed in args.seeds:
                words = [f"data.synthetic.rows={rows}", f"seed={seed}", *args.set]
                run = args.out / f"{args.name}-{rows}-{seed}"
                config = load_config(args.config, words)
                figures = train(config, run, process)
                figures["expected auc"] = expected(config, run, process)
                curve.setdefault(rows, []).append(figures)
                # Kept after each: a later one may be interrupted.
                settings = {"seeds": args.seeds, "set": args.set}
                keep_result(args.name, {**settings, "runs": curve})
    Console(width=120).print(table_of(curve))


def expected(config: Config, run: Path, process: Process) -> Figures:
    """Judge the served score and what the columns tell over all possible clicks."""
    evaluator, model, _ = open_evaluator("ranking", run, config, process)
    logits = evaluator.logits(model, "test")
    known = KnownRows.of(run / "data")
    step = -(-len(known.rows) // JUDGED)
    some = known.every(step)
    p = some.truth["p_click"].to_numpy()
    served, columns = logits.logits[::step, 0], some.attainable("train")
    return {"served": expected_auc(served, p), "columns": expected_auc(columns, p)}


def table_of(curve: dict[int, list[Run]]) -> Table:
    """One line for each number of rows: AUC, mean (standard deviation) over seeds."""
    table = Table(title="A known world, test AUC of the click")
    names = ("possible: columns", "possible: served", "below")
    for column in ("rows", *SCORES, *names):
        table.add_column(column, justify="right")
    for rows, runs in curve.items():
        aucs = [[run[score]["auc"] for run in runs] for score in SCORES]
        columns, served = (
            [run["expected auc"][name] for run in runs]
            for name in ("columns", "served")
        )
        below = [a - b for a, b in zip(columns, served, strict=True)]
        table.add_row(f"{rows:,}", *map(shown, (*aucs, columns, served, below)))
    return table


if __name__ == "__main__":
    main()
