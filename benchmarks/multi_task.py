"""One ranker of three labels against three rankers of one label each, on KuaiRand.

    adrec prepare --config configs/kuairand_two_logs.yaml --out RUN data.raw=FOLDER
    python benchmarks/multi_task.py RUN/data --seeds 0 1 2

Training rows are the first log, test rows the last two days of the second one; what
lies between is validation, on which settings were chosen and calibrations are fitted. A
ranker of one label has the same head, whose other losses weigh a millionth: AdamW
and Adagrad do not see the scale of a loss, but which one the shared weights follow.

For every label: its figures, their paired difference with a bootstrap interval over
users, and the slope of its calibration (of a value, that of a Poisson regression).
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from seeds import shown
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import log_loss, roc_auc_score
from timing import keep_result

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.evaluation.bootstrap import interval
from torchrec_adrec.evaluation.calibration_metrics import recalibration
from torchrec_adrec.evaluation.metrics import Predictions
from torchrec_adrec.evaluation.row_keys import read_row_keys
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.calibration import Calibrations, load_calibrations
from torchrec_adrec.tasks.sharded import final_checkpoint
from torchrec_adrec.training.evaluator import Evaluator
from torchrec_adrec.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs/kuairand_two_logs.yaml"
ALL, RESAMPLES = "all", 300
Figures = dict[str, float]


class OnlyCalibrated(Evaluator):
    """Leaves out the report of a run, which takes longer than its training."""

    def held_out(
        self, model: Any, calibrations: Calibrations | None = None
    ) -> dict[str, Any]:
        """Return nothing."""
        return {}


def main() -> None:
    """Train, compare, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a prepared data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    parser.add_argument("--set", nargs="*", default=[], help="key=value ...")
    parser.add_argument("--name", default="multi_task", help="of the result")
    args = parser.parse_args()
    schema = Schema.load(args.data / "schema.json")
    runs: dict[str, list[Predictions]] = {n: [] for n in (ALL, *schema.label_names)}
    with process_group("cpu") as process:
        for seed in args.seeds:
            for objective in runs:
                words = [f"seed={seed}", *weights(objective, schema), *args.set]
                predicted = predictions(args.data, words, args.split, process)
                runs[objective].append(predicted)
                print(seed, objective, figures_of(schema, predicted), flush=True)
    result = compared(schema, runs, users_of(args.data, args.split, schema))
    Console(width=140).print(table_of(result, len(args.seeds)))
    settings = {"seeds": args.seeds, "split": args.split, "set": args.set}
    keep_result(args.name, {**settings, "labels": result})


def weights(objective: str, schema: Schema) -> list[str]:
    """The settings of a ranker of one label, or of all."""
    if objective == ALL:
        return []
    by_name = {n: 1.0 if n == objective else 1e-6 for n in schema.label_names}
    return [f"ranking.label_weights={by_name}"]


def predictions(
    data: Path, words: list[str], split: str, process: Process
) -> Predictions:
    """Train one ranker and return its calibrated predictions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = Trainer("ranking", load_config(CONFIG, words), process, data, folder)
        plain = trainer.evaluator
        trainer.evaluator = OnlyCalibrated(
            *(getattr(plain, field.name) for field in fields(plain))
        )
        trainer.fit()
        calibrations = load_calibrations(final_checkpoint(folder))
        logits = trainer.evaluator.logits(trainer.model, split)
    return logits.predictions(trainer.schema, calibrations)


def users_of(data: Path, split: str, schema: Schema) -> Int64s:
    """The number of each row's user; all labels were observed in every row."""
    rows = Split.open(data / split).num_rows
    return read_row_keys(data, split, np.arange(rows), schema).clusters(rows)


def figures_of(schema: Schema, predicted: Predictions) -> dict[str, Figures]:
    """The figures of each label's calibrated predictions."""
    result = {}
    for label in schema.labels:
        p, y = predicted[label.name]
        if label.kind == "binary":
            result[label.name] = {
                "AUC": float(roc_auc_score(y, p)),
                "log loss": float(log_loss(y, p)),
                "slope": recalibration(p, y)[0],
                "mean ratio": float(p.mean() / y.mean()),
            }
        else:
            model = PoissonRegressor(alpha=0, tol=1e-8).fit(np.log(p)[:, None], y)
            result[label.name] = {
                "rank correlation": float(spearmanr(p, y).statistic),
                "MAE": float(np.abs(p - y).mean()),
                "slope": float(model.coef_[0]),
                "mean ratio": float(p.mean() / y.mean()),
            }
    return result


def compared(
    schema: Schema, runs: Mapping[str, list[Predictions]], users: Int64s
) -> dict[str, Any]:
    """By label: the figures of both rankers, and their difference with its interval."""
    result = {}
    for label in schema.labels:
        both = {
            who: [figures_of(schema, p)[label.name] for p in runs[run]]
            for who, run in (("multi", ALL), ("single", label.name))
        }
        metric = auc if label.kind == "binary" else rank_correlation
        pairs = [
            (multi[label.name], single[label.name])
            for multi, single in zip(runs[ALL], runs[label.name], strict=True)
        ]
        result[label.name] = {**both, "difference": difference(metric, pairs, users)}
    return result


def auc(label: Float64s, score: Float64s) -> float:
    """Area under the ROC curve."""
    return float(roc_auc_score(label, score))


def rank_correlation(value: Float64s, score: Float64s) -> float:
    """Spearman's."""
    return float(spearmanr(value, score).statistic)


def difference(
    metric: Callable[[Float64s, Float64s], float], pairs: list[Any], users: Int64s
) -> Figures:
    """The mean over seeds of multi less single, and its 95% interval over users.

    Args:
        metric: of observed and predicted numbers.
        pairs: of each seed: predictions and labels of the one ranker and of the other.
        users: (N,) the number of each row's user, from 0.
    """

    def gain(rows: Any) -> float:
        return mean(
            metric(y[rows], multi[rows]) - metric(y[rows], single[rows])
            for (multi, y), (single, _) in pairs
        )

    order = np.argsort(users, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(users))[:-1])
    rng = np.random.default_rng(0)
    draws = [
        gain(np.concatenate([rows_of[u] for u in rng.integers(len(rows_of), size=n)]))
        for n in [len(rows_of)] * RESAMPLES
    ]
    low, high = interval(np.array(draws))
    return {"mean": gain(slice(None)), "low": float(low), "high": float(high)}


def table_of(result: dict[str, Any], seeds: int) -> Table:
    """A line for each label and ranker."""
    table = Table(title=f"One ranker of all labels, {seeds} seeds: mean (sd)")
    names = ("label", "ranker", "AUC / rank corr.", "log loss / MAE", "slope", "ratio")
    for name in (*names, "difference of the first [95%]"):
        table.add_column(name)
    for label, entry in result.items():
        gain = entry["difference"]
        gain = f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
        for who in ("multi", "single"):
            cells = list(_cells(entry[who]))
            table.add_row(label, who, *cells, gain if who == "multi" else "")
    return table


def _cells(runs: list[Figures]) -> Iterator[str]:
    for name in runs[0]:
        yield shown([run[name] for run in runs])


if __name__ == "__main__":
    main()
