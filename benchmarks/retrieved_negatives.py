"""Does a ranker gain by retrieved ads as unobserved negatives?

    python benchmarks/retrieved_negatives.py --out FOLDER --seeds 0 1 2
    python benchmarks/retrieved_negatives.py --out FOLDER --seeds 0 --small

For every seed the world of `configs/synthetic_demo.yaml` is prepared and its towers are
trained, exported and indexed once; then a ranker is trained for each variant, all of
them calibrated on the validation impressions (`platt`), and the whole funnel is judged.

    share       of the oracle's worth that the ten served ads have, with its interval
    AUC, loss   of the served click on the test impressions
    alone       of the ranker without the towers' part (`ranking.blend`): AUC, and the
                mean predicted click over the observed one before any fit
    slope, ECE  of the served click on them, before the calibration and behind it; where
                the towers serve too, the blend has fitted a slope before
    drawn rows  beside the logged ones of an epoch

What is finished in FOLDER is not made again, so the command may be stopped.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from seeds import shown
from some_stages import run_stages
from timing import keep_result

from torchrec_adrec.evaluation.funnel.names import FOLDER as JUDGED
from torchrec_adrec.evaluation.funnel.names import FUNNEL, METRICS, RETRIEVAL
from torchrec_adrec.evaluation.funnel.report import evaluate_funnel
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.serve.recommender import Recommender

CONFIG = Path(__file__).parents[1] / "configs/synthetic_demo.yaml"
BEFORE = ("data", "retrieval", "export", "index")
# The folds in all of them, so that every variant reads the same data.
COMMON = (
    "data.statistics={cross_pairs: 10, keep_folds: true}",
    "ranking.calibration=platt",
    "train.restarts=0",
)
VARIANTS = {
    "none": (),
    "4 a click": ("per_click=4",),
    "1 a click": ("per_click=1",),
    "4 a click, weight 0.1": ("per_click=4", "weight=0.1"),
}
SMALL = (
    "data.synthetic={rows: 24000, ads: 600, users: 1000}",
    "recommend.candidates=100",
    "ranking.retrieved_negatives.candidates=100",
    "retrieval={embedding_dim: 8, hidden: [64], output_dim: 16, temperature: 0.15,"
    " alpha: 0.95, optimizer: {tables_lr: 0.05, dense_lr: 0.003}}",
    "ranking.hidden=[64, 32]",
    "evaluation.funnel_users=300",
)
Figures = dict[str, float]


def main() -> None:
    """Train every variant of every seed, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/retrieved_negatives"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--small", action="store_true", help="a small world")
    parser.add_argument("--job", default="1x1", help="1xRANKS")
    parser.add_argument("--name", default="retrieved_negatives", help="of the result")
    args = parser.parse_args()
    runs: dict[str, list[Figures]] = {name: [] for name in args.variants}
    for seed in args.seeds:
        small = SMALL if args.small else ()
        overrides = [*COMMON, f"seed={seed}", *small, *args.set]
        base = args.out / f"{seed}-base"
        run_stages(CONFIG, overrides, base, args.job, *BEFORE)
        for name in args.variants:
            out = args.out / f"{seed}-{name.replace(', ', '-').replace(' ', '-')}"
            out.mkdir(exist_ok=True)
            for stage in BEFORE:
                if not (out / stage).exists():
                    (out / stage).symlink_to((base / stage).resolve())
            drawn = [f"ranking.retrieved_negatives.{word}" for word in VARIANTS[name]]
            run_stages(CONFIG, [*overrides, *drawn], out, args.job, "ranking")
            runs[name].append(judged(out))
            print(seed, name, runs[name][-1], flush=True)
        kept = {"seeds": args.seeds, "small": args.small, "set": args.set, "runs": runs}
        keep_result(args.name, kept)
    Console(width=150).print(table_of(runs))


def judged(run: Path) -> Figures:
    """Collect what a finished run says of itself; judge its funnel, if nobody has."""
    path = run / JUDGED / METRICS
    if not path.exists():
        settings = stage_settings(run / "ranking")
        recommender = Recommender.load(run)
        evaluate_funnel(run, recommender, settings.evaluation, settings.seed)
    funnel = json.loads(path.read_text())["rows"]
    ranking = json.loads((run / "ranking/metrics.json").read_text())
    click = ranking["details"]["click"]
    figures = {
        "share": funnel[FUNNEL]["share"],
        "share low": funnel[FUNNEL]["share_interval"][0],
        "share high": funnel[FUNNEL]["share_interval"][1],
        "towers' share": funnel[RETRIEVAL]["share"],
        "validation AUC": ranking["valid"]["click"]["auc"],
        "AUC": ranking["test"]["click"]["auc"],
        "log loss": ranking["test"]["click"]["log_loss"],
        "alone, AUC": ranking["blend"]["ranker_alone"]["auc"],
        "alone, predicted": ranking["blend"]["ranker_alone"]["calibration"],
        "towers' weight": ranking["blend"]["towers"],
    }
    by_time = {"before": click["uncalibrated"], "behind": click["figures"]}
    for name, values in by_time.items():
        figures |= {f"{key} {name}": values[key] for key in ("slope", "ece")}
    return figures | {"drawn rows": ranking["train"]["retrieved_rows_per_epoch"]}


def table_of(runs: dict[str, list[Figures]]) -> Table:
    """Return a column for each variant: means over seeds (standard deviation)."""
    table = Table("figure", *runs)
    for key in next(iter(runs.values()))[0]:
        cells = [shown([run[key] for run in of_seeds]) for of_seeds in runs.values()]
        table.add_row(key, *cells)
    return table


if __name__ == "__main__":
    main()
