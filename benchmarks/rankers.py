"""Every ranker model on the same rows, in the same trainer: quality, size, speed.

    adrec prepare --config configs/criteo_kaggle.yaml --out RUN data.raw=FILE \
        'data.split={train: 0.8, valid: 0.1, test: 0.1}'
    python benchmarks/rankers.py RUN/data --seeds 0 1 2 --boosting

Settings are chosen on the validation rows; the test rows are printed beside them and
choose nothing. A model's tables start fresh, so no retrieval model is needed.
`--boosting` trains LightGBM on the same columns (`pip install .[baselines]`).
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from sklearn.metrics import log_loss, roc_auc_score
from timing import keep_result

from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.models.rankers.registry import RANKERS
from torchrec_adrec.schema import Schema
from torchrec_adrec.training.trainer import Trainer

SETTINGS = (
    "ranking.tables=scratch",
    "ranking.optimizer={tables_lr: 0.005, dense_lr: 0.001, warmup_steps: 50,"
    " decay: cosine}",
    "ranking.dropout=0.3",
    "retrieval.embedding_dim=8",
    "train.batch_size=512",
    "train.epochs=3",
    "train.checkpoint_every=1000000",
    "train.health_every=0",
)
Figures = dict[str, float]


def main() -> None:
    """Train each model once per seed, print the table, keep the figures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("data", type=Path, help="a prepared data set")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--models", nargs="+", default=list(RANKERS))
    arguments.add_argument("--set", nargs="*", default=[], help="key=value ...")
    arguments.add_argument("--boosting", action="store_true", help="LightGBM too")
    arguments.add_argument("--name", default="rankers", help="of the result")
    args = arguments.parse_args()
    runs: dict[str, list[Figures]] = {}
    with process_group("cpu") as process:
        for seed in args.seeds:
            for model in args.models:
                figures = train(args.data, model, seed, args.set, process)
                runs.setdefault(model, []).append(figures)
                print(seed, model, figures, flush=True)
            if args.boosting:
                runs.setdefault("lightgbm", []).append(boosting(args.data, seed))
    Console(width=120).print(table_of(runs))
    settings = {"seeds": args.seeds, "settings": [*SETTINGS, *args.set]}
    keep_result(args.name, {**settings, "runs": runs})


def train(
    data: Path, model: str, seed: int, overrides: list[str], process: Process
) -> Figures:
    """Train one model and judge it on validation and test rows."""
    words = [*SETTINGS, f"ranking.model={model}", f"seed={seed}", *overrides]
    config = load_config(None, words)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer("ranking", config, process, data, Path(folder))
        began = time.perf_counter()
        metrics = trainer.fit()
        seconds = time.perf_counter() - began
    # Early stopping may take fewer steps than the source has.
    rows = config.train.batch_size * metrics["train"]["steps"]
    return _judged(metrics, trainer.schema.label_names[0]) | {
        "parameters": float(sum(p.numel() for p in trainer.model.parameters())),
        "samples/s": rows / seconds,
    }


def _judged(metrics: dict[str, Any], click: str) -> Figures:
    return {
        f"{split} {name}": metrics[split][click][key]
        for split in ("valid", "test")
        for name, key in (("AUC", "auc"), ("log loss", "log_loss"))
    }


def boosting(data: Path, seed: int) -> Figures:
    """LightGBM on the same ids, as categories, and numbers; stopped on validation."""
    import lightgbm

    schema = Schema.load(data / "schema.json")
    click = schema.label_names[0]
    ids = [feature.name for feature in schema.sparse]
    names = [*(feature.name for feature in schema.joined.dense), *ids]
    frames = {
        split: pl.read_parquet(data / split / "*.parquet", columns=[*names, click])
        for split in ("train", "valid", "test")
    }
    sets = {
        split: lightgbm.Dataset(
            frame.select(names).to_numpy(),
            frame[click].to_numpy(),
            feature_name=names,
            categorical_feature=ids,
            free_raw_data=False,
        )
        for split, frame in frames.items()
    }
    began = time.perf_counter()
    model = lightgbm.train(
        {
            **{"objective": "binary", "learning_rate": 0.05, "num_leaves": 31},
            **{"min_data_in_leaf": 50, "feature_fraction": 0.5, "seed": seed},
            **{"cat_smooth": 50, "verbose": -1, "num_threads": 2},
        },
        sets["train"],
        num_boost_round=1000,
        valid_sets=[sets["valid"]],
        callbacks=[lightgbm.early_stopping(50, verbose=False)],
    )
    seconds = time.perf_counter() - began
    figures: Figures = {}
    for split in ("valid", "test"):
        scores = model.predict(sets[split].data)
        observed = frames[split][click].to_numpy()
        figures[f"{split} AUC"] = float(roc_auc_score(observed, scores))
        figures[f"{split} log loss"] = float(log_loss(observed, scores))
    rows = len(frames["train"]) * model.best_iteration
    return figures | {
        "parameters": float(model.best_iteration * 31),
        "samples/s": rows / seconds,
    }


def table_of(runs: dict[str, list[Figures]]) -> Table:
    """One line a model: the mean over seeds, and the spread of the AUC."""
    count = max(map(len, runs.values()))
    table = Table(title=f"Rankers, {count} seeds: mean (standard deviation)")
    names = list(next(iter(runs.values()))[0])
    for name in ("model", *names):
        table.add_column(name, justify="left" if name == "model" else "right")
    for model, figures in runs.items():
        table.add_row(model, *_cells(names, figures))
    return table


def _cells(names: list[str], figures: list[Figures]) -> Iterator[str]:
    for name in names:
        values = [run[name] for run in figures]
        if name in ("parameters", "samples/s"):
            yield f"{mean(values):,.0f}"
        else:
            spread = f" ({stdev(values):.4f})" if len(values) > 1 else ""
            yield f"{mean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
