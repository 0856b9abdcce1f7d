"""Towers on a world whose law is known: how near they come to what can be reached.

    python benchmarks/known_world.py --seeds 0 1 2
    python benchmarks/known_world.py --seeds 0 --set data.synthetic.rows=100000

For every seed the world is prepared once; each variant trains on it in its own run:

    AUC of the click on (up to 50,000) test rows, as drawn and over all clicks that
    could have been drawn, beside the rule's and that of all that the columns tell on
    the test's days and on the training days (docs/known_world.md)
    Recall@500 of the true 500 best ads of 1,000 users, beside popularity's
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from seeds import Spread, shown, spread_of
from sklearn.metrics import roc_auc_score
from some_stages import run_stages, share_data
from timing import keep_result

from torchrec_adrec.config.run import Config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.evaluation.attainable import KnownRows
from torchrec_adrec.evaluation.bootstrap import interval, resampled_means
from torchrec_adrec.evaluation.encode import encode
from torchrec_adrec.evaluation.exact_search import BlockScorer, search
from torchrec_adrec.evaluation.known_world import expected_auc
from torchrec_adrec.evaluation.predict import split_logits
from torchrec_adrec.evaluation.ranking_metrics import many_relevant
from torchrec_adrec.evaluation.scorers import InnerProduct, Popularity
from torchrec_adrec.evaluation.true_top import TrueTop
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.tasks.sharded import restore

USERS, BEST = 1_000, 500
ROWS = 50_000  # of the test split that AUCs are taken of, or fewer
VARIANTS = {
    "as configured": [],
    "click alone": ["retrieval.alpha=1"],
    "logQ": ["retrieval.log_q=true", "retrieval.uniform_negatives=0"],
    "no logQ": ["retrieval.log_q=false", "retrieval.uniform_negatives=0"],
    "logQ, mixed": ["retrieval.log_q=true", "retrieval.uniform_negatives={mixed}"],
    "no logQ, mixed": ["retrieval.log_q=false", "retrieval.uniform_negatives={mixed}"],
}
Figures = dict[str, float]


def main() -> None:
    """Prepare, train, judge, print, keep."""
    args = _arguments()
    by_variant: dict[str, list[Figures]] = {}
    with process_group("cpu") as process:
        for seed in args.seeds:
            for variant, figures in _seed(args, seed, process):
                by_variant.setdefault(variant, []).append(figures)
    Console(width=160).print(_table(by_variant))
    spread = {name: _spread(runs) for name, runs in by_variant.items()}
    settings = {"seeds": args.seeds, "set": args.set, "mixed": args.mixed}
    keep_result(args.name, {**settings, "summary": spread, "runs": by_variant})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/known_world.yaml"))
    parser.add_argument("--name", default="known_world", help="of the file in results/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/known_world"))
    parser.add_argument("--job", default="1x2", help="1xRANKS")
    parser.add_argument("--mixed", type=int, default=1024, help="uniform negatives")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS)[1:]
    )
    return parser.parse_args()


def _seed(args: argparse.Namespace, seed: int, process: Process) -> Any:
    """Each variant's figures on the world of one seed, and what bounds them."""
    base = args.out / f"seed-{seed}/base"
    overrides = [*args.set, f"seed={seed}"]
    config = run_stages(args.config, overrides, base, args.job, "data")
    known, catalog = KnownRows.of(base / "data"), load_catalog(base / "data")
    yield "bounds", _bounds(known.every(_step(known)))
    top = TrueTop.of(known, catalog, base / "data", USERS, BEST, seed)
    popular = Popularity.of(
        catalog["impressions"].to_numpy(), slice(0, len(catalog)), process.device
    )
    yield "popularity", _recall(popular, top, len(catalog), process, seed)
    for variant in args.variants:
        run = args.out / f"seed-{seed}" / variant.replace(", ", "-").replace(" ", "-")
        share_data(base, run)
        extra = [word.format(mixed=args.mixed) for word in VARIANTS[variant]]
        config = run_stages(
            args.config, [*overrides, *extra], run, args.job, "retrieval"
        )
        yield variant, _towers(run, config, known, top, process)


def _step(known: KnownRows) -> int:
    return -(-len(known.rows) // ROWS)


def _bounds(known: KnownRows) -> Figures:
    """AUC of the rule, of what its columns tell, and of that on the training days."""
    p = known.truth["p_click"].to_numpy()
    by_variant = {"rule": p} | {
        f"columns, {days} days": known.attainable(days) for days in ("test", "train")
    }
    return {
        f"{name}: {key}": value
        for name, score in by_variant.items()
        for key, value in _aucs(score, known).items()
    }


def _aucs(score: Any, known: KnownRows) -> Figures:
    clicked = known.truth["engagement"].is_not_null().to_numpy()
    p = known.truth["p_click"].to_numpy()
    return {
        "auc": float(roc_auc_score(clicked, score)),
        "expected auc": expected_auc(score, p),
    }


def _towers(
    run: Path, config: Config, known: KnownRows, top: TrueTop, process: Process
) -> Figures:
    schema = Schema.load(run / "data/schema.json")
    model, _ = restore("retrieval", run, schema, config, process)
    test, size = run / "data/test", config.train.eval_batch_size
    logits = split_logits(model, test, schema, process, size)
    predicted = logits.predictions(schema)["click"]
    clicked = known.truth["engagement"].is_not_null().to_numpy()
    assert np.array_equal(predicted[1], clicked), "rows stand in another order"
    catalog = load_catalog(run / "data")
    asked = pl.read_parquet(test / "*.parquet")[top.rows]
    towers = model.module.model
    kind = config.retrieval.similarity
    users = encode(towers.encode_users, asked, schema, Side.USER, kind, size, process)
    ads = encode(towers.ad_tower, catalog, schema, Side.AD, kind, size, process)
    scorer = InnerProduct.of(users, ads, 0, process.device)
    step = _step(known)
    by_variant = _aucs(predicted[0][::step], known.every(step))
    return by_variant | _recall(scorer, top, len(catalog), process, config.seed)


def _recall(
    scorer: BlockScorer, top: TrueTop, catalog: int, process: Process, seed: int
) -> Figures:
    """Recall of the true best, with its interval over users."""
    lists = search(scorer, top.best[:, 0], BEST, process, top.unborn).lists
    recall = many_relevant(lists, top.best, (BEST,), catalog)[f"recall@{BEST}"]
    low, high = interval(resampled_means(recall[:, None], seed))[:, 0]
    return {f"recall@{BEST}": float(recall.mean()), "low": low, "high": high}


def _spread(runs: list[Figures]) -> dict[str, Spread]:
    """Mean and standard deviation over seeds."""
    return {key: spread_of([run[key] for run in runs], 4) for key in runs[0]}


def _table(by_variant: Mapping[str, list[Figures]]) -> Table:
    """Bounds first; AUC below what the columns tell; recall over popularity's."""
    count = len(next(iter(by_variant.values())))
    table = Table(title=f"A known world, {count} seeds: mean (sd)")
    gaps = ("below the columns, test days", "train days")
    names = ("AUC", "expected AUC", *gaps, f"recall@{BEST}", "x popular")
    for name in ("", *names):
        table.add_column(name)
    bounds = by_variant["bounds"]
    for key in ("rule", "columns, test days", "columns, train days"):
        aucs = [[run[f"{key}: {n}"] for run in bounds] for n in ("auc", "expected auc")]
        table.add_row(key, *map(shown, aucs))
    popular = [run[f"recall@{BEST}"] for run in by_variant["popularity"]]
    table.add_row("popularity", "", "", "", "", shown(popular), "1")
    for name in [n for n in by_variant if n not in ("bounds", "popularity")]:
        runs = by_variant[name]
        recall = [run[f"recall@{BEST}"] for run in runs]
        below = [
            [
                bound[f"columns, {days} days: expected auc"] - run["expected auc"]
                for bound, run in zip(bounds, runs, strict=True)
            ]
            for days in ("test", "train")
        ]
        over = [r / p for r, p in zip(recall, popular, strict=True)]
        both = [[run[n] for run in runs] for n in ("auc", "expected auc")]
        cells = [shown(x) for x in (*both, *below, recall, over)]
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    main()
