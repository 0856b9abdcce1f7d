"""Recommenders of the literature on a prepared data set, by the protocols of papers.

    adrec prepare --config configs/amazon_beauty.yaml --out runs/beauty \\
        data.raw=FOLDER/Beauty.txt.gz
    python benchmarks/classics.py runs/beauty --models item_knn ease als --name beauty

Settings are chosen on validation clicks, the test clicks are looked at once for each
model and seed. What is done stands in benchmarks/results/classics_NAME.json and is not
done again, so a run that was interrupted goes on; `--again` does a model anew. Only the
models of `SEEDED` are fitted with every seed; the draws of the sampled protocol are
always those of seed 0. `--curve 20` prints and keeps LightGCN's figures after each
epoch; `--grid` tries other settings than the model's own.
"""

import argparse
import json
import logging
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from timing import RESULTS, keep_result

from torchrec_adrec.evaluation.classics.factors import Vectors
from torchrec_adrec.evaluation.classics.interactions import Interactions
from torchrec_adrec.evaluation.classics.lightgcn import LightGCNSettings, fit_lightgcn
from torchrec_adrec.evaluation.classics.methods import METHODS, run_method
from torchrec_adrec.evaluation.classics.protocol import (
    RankingProtocol,
    ResultTable,
    judge,
)
from torchrec_adrec.evaluation.classics.report import TITLES, sizes

SEEDED = ("als", "bpr", "lightgcn")
SHOWN = tuple(f"{m}@{k}" for m in ("hr", "recall", "ndcg", "mrr") for k in (5, 10, 20))
Runs = dict[str, dict[str, Any]]


def main() -> None:
    """Run the models that are not done yet, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run, prepared")
    parser.add_argument("--models", nargs="+", default=[], choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--name", help="of the result; default: the run's folder")
    parser.add_argument("--again", action="store_true", help="do models anew")
    parser.add_argument("--grid", type=json.loads, help="a JSON list of settings")
    parser.add_argument("--users", type=int, help="judge so many drawn users at most")
    parser.add_argument("--curve", type=int, help="epochs of LightGCN's curve")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    name = f"classics_{args.name or args.run.name}"
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    runs: Runs = kept.get("runs", {})
    data = Interactions.load(args.run / "data")
    counts = sizes(data)
    for model in args.models:
        seeds = args.seeds if model in SEEDED else args.seeds[:1]
        for seed in seeds:
            done = runs.setdefault(model, {})
            if str(seed) not in done or args.again:
                grid = tuple(args.grid) if args.grid else None
                done[str(seed)] = run_method(
                    model, data, seed, grid=grid, most_users=args.users
                )
                keep_result(name, {**kept, "data": counts, "runs": runs})
    if args.curve:
        settings = (args.grid or [{}])[0] | {"epochs": args.curve}
        kept["curve"] = {"settings": settings, "epochs": []}

        def after(epoch: int, figures: dict[str, float]) -> None:
            kept["curve"]["epochs"].append({"epoch": epoch, **figures})
            keep_result(name, {**kept, "data": counts, "runs": runs})

        curve(data, LightGCNSettings(**settings), args.seeds[0], after)
    print_tables(name, runs)


def curve(
    data: Interactions, settings: LightGCNSettings, seed: int, after: Any
) -> None:
    """Fit LightGCN on the clicks before the test, and judge it after each epoch.

    The curve shows how far training has come; no epoch is chosen by it.
    """
    protocol = RankingProtocol(most_users=10_000)

    def judge_epoch(epoch: int, vectors: Vectors) -> None:
        means = judge(vectors, data, protocol).means
        after(epoch, {name: means[name] for name in ("recall@20", "ndcg@20")})

    fit_lightgcn(data.known("test"), settings, seed, judge_epoch)


def print_tables(name: str, runs: Runs) -> None:
    """One table for each protocol: they never share one."""
    console = Console(width=160)
    for protocol in ("full", "sampled"):
        table = Table("model", *SHOWN, title=f"{name}: {TITLES[protocol]}")
        results = ResultTable()  # refuses a row of another protocol
        for model, done in runs.items():
            for seed, run in done.items():
                results.add(f"{model} {seed}", run[protocol])
            rows = [results.rows[f"{model} {seed}"] for seed in done]
            table.add_row(model, *(_cell([row[m] for row in rows]) for m in SHOWN))
        console.print(table)
    lengths = (
        next(iter(next(iter(runs.values())).values()))["cold_start"] if runs else ()
    )
    table = Table("model", *lengths, title=f"{name}: HR@10 by length of history")
    for model, done in runs.items():
        cold = [run["cold_start"] for run in done.values()]
        table.add_row(model, *(_cell([c[n]["hr@10"] for c in cold]) for n in lengths))
    console.print(table)


def _cell(values: list[float]) -> str:
    spread = f" ({stdev(values):.4f})" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
