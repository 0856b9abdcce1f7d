"""Encoders of the history on one data set: mean, attention and GRU, paired by user.

    python benchmarks/history_encoders.py configs/kuairand.yaml --seeds 0 1 2 \
        --out runs/encoders --set data.raw=FOLDER

Every encoder and seed is a run of its own below --out, on the same prepared data, and
what is finished is not done again. Each test click is ranked in the whole catalog by
the exported vectors, without the ads that its user is known to have clicked:

    Recall@10 and NDCG@10, mean over seeds (standard deviation)
    the difference to the first encoder of --encoders, with its 95% interval: users are
    drawn with replacement, the same ones for both, figures being means over the seeds
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from seeds import shown
from some_stages import run_stages, share_data
from timing import keep_result

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.config.run import Config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.evaluation.comparison import Difference, mean_terms, paired
from torchrec_adrec.evaluation.exact_search import search
from torchrec_adrec.evaluation.full_catalog import held_out_clicks
from torchrec_adrec.evaluation.known_ads import known_ads, new_clicks
from torchrec_adrec.evaluation.ranking_metrics import PerQuery, one_relevant
from torchrec_adrec.evaluation.scorers import InnerProduct
from torchrec_adrec.index.manifest import load_vectors
from torchrec_adrec.schema import AD_ID, USER_KEY, Schema

ENCODERS = ("mean", "attention", "gru")
METRICS = ("recall@10", "ndcg@10")
CUT = 10


def main() -> None:
    """Run, judge, print, keep."""
    args = _arguments()
    by_encoder: dict[str, list[PerQuery]] = {name: [] for name in args.encoders}
    users = np.empty(0, dtype=np.int64)
    base = args.out / "data-run"
    shared = [*args.set, f"data.seed={args.seeds[0]}"]
    run_stages(args.config, shared, base, args.job, "data")
    for seed in args.seeds:
        for name in args.encoders:
            run = args.out / f"{name}-{seed}"
            share_data(base, run)
            overrides = [*shared, f"seed={seed}", f"retrieval.history.encoder={name}"]
            stages = "retrieval", "export"
            config = run_stages(args.config, overrides, run, args.job, *stages)
            users, metrics = _judge(run, config)
            by_encoder[name].append(metrics)
    _report(args, by_encoder, users)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--out", type=Path, default=Path("runs/encoders"))
    parser.add_argument("--name", default="history_encoders", help="of the result")
    parser.add_argument("--job", default="1x1", help="1xRANKS")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def _judge(run: Path, config: Config) -> tuple[Int64s, PerQuery]:
    """Users and metrics of every exported test click."""
    data = run / "data"
    schema, catalog = Schema.load(data / "schema.json"), load_catalog(data)
    # A run's seed also draws its clicks where there are more than are searched for:
    # `evaluation.queries` must hold all of them, or seeds could not be paired.
    most = config.evaluation.queries
    clicks, total = held_out_clicks(data, schema, most, config.seed)
    assert len(clicks) == total, f"set evaluation.queries={total} to pair all clicks"
    ids, ads = load_vectors(run / "export")
    clicked, users = load_vectors(run / "export", "queries.parquet")
    assert np.array_equal(clicked, clicks[AD_ID].to_numpy())
    assert np.array_equal(ids, catalog[AD_ID].to_numpy())
    known = known_ads(clicks, catalog, schema, data, "test")
    with process_group("cpu") as process:
        places = np.searchsorted(ids, clicked)
        is_new, excluded = new_clicks(known, places)
        scorer = InnerProduct.of(users[is_new], ads, 0, process.device)
        ranks = search(scorer, places[is_new], CUT, process, excluded).ranks
    keys = clicks[USER_KEY] if USER_KEY in clicks.columns else pl.Series(range(total))
    return keys.to_numpy()[is_new], one_relevant(ranks, (CUT,))


def _report(
    args: argparse.Namespace, by_encoder: dict[str, list[PerQuery]], users: Int64s
) -> None:
    figures = {
        name: {m: [float(run[m].mean()) for run in runs] for m in METRICS}
        for name, runs in by_encoder.items()
    }
    clusters = np.unique(users, return_inverse=True)[1]
    terms = {
        name: mean_terms({m: np.mean([run[m] for run in runs], 0) for m in METRICS})
        for name, runs in by_encoder.items()
    }
    first, *others = args.encoders
    differences = {
        name: paired(terms[first], terms[name], clusters, 0, METRICS) for name in others
    }
    Console(width=120).print(_table(first, figures, differences))
    kept = {
        name: {d.metric: [d.b - d.a, d.low, d.high] for d in of_metrics}
        for name, of_metrics in differences.items()
    }
    result = {"seeds": args.seeds, "figures": figures, f"minus {first}": kept}
    keep_result(args.name, result)


def _table(
    first: str,
    figures: dict[str, dict[str, list[float]]],
    differences: dict[str, list[Difference]],
) -> Table:
    against = [f"{metric} - {first}" for metric in METRICS]
    table = Table("encoder", *METRICS, *against, title="mean over seeds (deviation)")
    for name, metrics in figures.items():
        cells = [shown(metrics[metric]) for metric in METRICS]
        gains = [
            f"{d.b - d.a:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
            for d in differences.get(name, [])
        ]
        table.add_row(name, *cells, *gains)
    return table


if __name__ == "__main__":
    main()
