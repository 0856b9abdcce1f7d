"""Test figures of runs over seeds, with their spread.

    python benchmarks/runs.py --config configs/criteo_kaggle_plain.yaml \
        --name criteo_kaggle --seeds 0 1 2 --set data.raw=PATH

Every seed is a run on two ranks in a folder of its own below --out; models beside the
towers, as the additive one, train on the same prepared data:

    AUC and log loss of the constant, logistic regression, the additive model, towers,
    ranker; how far the towers are above the logistic regression, with its interval
    Recall@K of the clicked ad in the whole catalog: towers, popularity and the user's
    context alone; all, seen and unseen ads
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from some_stages import run_stages, share_data
from timing import keep_result

from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.evaluation.baselines import PREDICTIONS
from torchrec_adrec.evaluation.bootstrap import auc_difference
from torchrec_adrec.evaluation.predict import split_logits
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import restore

STAGES = ("data", "baselines", "retrieval", "export", "ranking")
BESIDE = {"additive": ["retrieval.similarity=additive", "retrieval.alpha=1"]}
WAYS = ("towers", "context", "popularity")
GROUPS = ("all", "seen_ads", "unseen_ads")
ABOVE = "towers - logistic regression, auc"
Figures = dict[str, float]


def main() -> None:
    """Run, collect, print, keep."""
    args = _arguments()
    runs = [_run(args, seed) for seed in args.seeds]
    figures = {key: [run[key] for run in runs] for key in runs[0]}
    summary = {
        key: {"mean": round(mean(values), 4), "sd": round(_sd(values), 4)}
        for key, values in figures.items()
    }
    for table in (_clicks_table(figures), _recall_table(figures)):
        Console(width=120).print(table)
    keep_result(args.name, {"seeds": args.seeds, "summary": summary, "runs": figures})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the file in results/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--job", default="1x2", help="1xRANKS")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--beside", nargs="*", choices=BESIDE, default=list(BESIDE))
    return parser.parse_args()


def _run(args: argparse.Namespace, seed: int) -> Figures:
    """All figures of one seed."""
    out = args.out / f"{args.name}-{seed}"
    overrides = [f"seed={seed}", *args.set]
    config = run_stages(args.config, overrides, out, args.job, *args.stages)
    figures = _figures(out)
    for name in args.beside:
        run = args.out / f"{args.name}-{seed}-{name}"
        share_data(out, run)
        extra = [*overrides, *BESIDE[name]]
        run_stages(args.config, extra, run, args.job, "retrieval")
        figures |= _click(name, _metrics(run, "retrieval")["test"]["click"])
    return figures | _above(out, config)


def _figures(run: Path) -> Figures:
    """What the finished stages of a run say of themselves."""
    baselines = _metrics(run, "baselines")
    figures = _click("constant", baselines["constant"]["test"])
    figures |= _click("logistic regression", baselines["logistic_regression"]["test"])
    for name, stage in (("towers", "retrieval"), ("ranker", "ranking")):
        if (run / stage).exists():
            figures |= _click(name, _metrics(run, stage)["test"]["click"])
    judged = _metrics(run, "export")["test"]
    for group in (g for g in GROUPS if g in judged):
        for way in WAYS:
            figures |= {
                f"{group}, {way}, {key}": value
                for key, value in judged[group][way].items()
                if key.startswith("recall@")
            }
    return figures


def _above(run: Path, config: Config) -> Figures:
    """AUC of the towers less that of the logistic regression, on the same rows."""
    schema, test = Schema.load(run / "data/schema.json"), run / "data/test"
    with process_group("cpu") as process:
        model, _ = restore("retrieval", run, schema, config, process)
        size = config.train.eval_batch_size
        logits = split_logits(model, test, schema, process, size)
        score, label = logits.predictions(schema)["click"]
    theirs = pl.read_parquet(run / "baselines" / PREDICTIONS)
    assert (theirs["click"].to_numpy() == label).all(), "rows stand in another order"
    other = theirs["logistic_regression"].to_numpy()
    figures = auc_difference(label, score, other, config.seed)
    return {f"{ABOVE} {key}": value for key, value in figures.items()}


def _metrics(run: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((run / stage / "metrics.json").read_text()))


def _click(name: str, figures: Figures) -> Figures:
    return {f"{name}, {key}": figures[key] for key in ("auc", "log_loss")}


def _clicks_table(figures: dict[str, list[float]]) -> Table:
    table = Table("test rows", "AUC", "log loss", title=_title(figures))
    names = [key.removesuffix(", log_loss") for key in figures if "log_loss" in key]
    for name in names:
        cells = [_shown(figures[f"{name}, {key}"]) for key in ("auc", "log_loss")]
        table.add_row(name, *cells)
    for end in ("difference", "low", "high"):
        table.add_row(f"{ABOVE} {end}", _shown(figures[f"{ABOVE} {end}"]), "")
    return table


def _recall_table(figures: dict[str, list[float]]) -> Table:
    keys = [key for key in figures if ", recall@" in key]
    cuts = list(dict.fromkeys(key.rpartition(", ")[2] for key in keys))
    table = Table("clicked ads", "way", *cuts, title=_title(figures))
    for row in dict.fromkeys(key.rpartition(", ")[0] for key in keys):
        cells = [_shown(figures[f"{row}, {cut}"]) for cut in cuts]
        table.add_row(*row.split(", "), *cells)
    return table


def _title(figures: dict[str, list[float]]) -> str:
    return f"{len(next(iter(figures.values())))} seeds: mean (sd)"


def _shown(values: list[float]) -> str:
    return f"{mean(values):.4f} ({_sd(values):.4f})"


def _sd(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
