"""Every ranker model on the same rows, in the same trainer: quality, size, speed.

    adrec prepare --config configs/criteo_kaggle.yaml --out RUN data.raw=FILE \
        'data.split={train: 0.8, valid: 0.1, test: 0.1}'
    python benchmarks/rankers.py RUN/data --keep FOLDER --seeds 0 1 2
    python benchmarks/ranker_table.py RUN/data FOLDER

Settings are those of `configs/criteo_kaggle.yaml`, chosen on the validation rows; a
`Row` says what it changes. The logits of every fit stay in FOLDER, and a fit that is
there is not made again, so the command may be stopped. The ranker's tables start fresh,
so no retrieval model is needed. LightGBM reads the same columns
(`pip install .[baselines]`).
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.schema import DenseFeature, Schema
from torchrec_adrec.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs/criteo_kaggle.yaml"
COMMON = ("train.checkpoint_every=1000000", "train.health_every=0")
SPLITS = ("valid", "test")
Without = Literal["nothing", "pairs", "statistics", "numbers", "ids"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        settings: what differs from the shipped configuration.
        without: inputs that are switched off; numbers: the statistics too; ids: of
            LightGBM alone.
        task: what is trained; None: LightGBM.
    """

    settings: tuple[str, ...] = ()
    without: Without = "nothing"
    task: str | None = "ranking"


def _model(name: str, *settings: str, without: Without = "nothing") -> Row:
    return Row((f"ranking.model={name}", *settings), without)


# An id's vector learns what the row's own statistic left out (docs/data.md): the
# transformer is best after one epoch, and lr likes a higher rate of its weights.
TRANSFORMER = ("transformer", "ranking.epochs=1")
# Wide enough that two tokens of an ad hold more numbers than its tables give them.
WIDE = (
    *TRANSFORMER,
    "ranking.model_dim=64",
    "ranking.heads=4",
    "ranking.feedforward_dim=256",
)
LOGISTIC = (
    "lr",
    "ranking.table_init=null",
    "ranking.embedding_dim=null",
    "ranking.optimizer.tables_lr=0.02",
)
ROWS = {
    "lr": _model(*LOGISTIC),
    "dnn": _model("dnn"),
    "deepfm": _model("deepfm"),
    "dcnv2": _model("dcnv2"),
    "dlrm": _model("dlrm"),
    "finalmlp": _model("finalmlp"),
    "transformer": _model(*TRANSFORMER),
    "lightgbm": Row(task=None),
    # Statistics say more of a value than trees find in it as a category.
    "lightgbm without ids": Row(without="ids", task=None),
    "5 dcnv2": _model("dcnv2", "ranking.seeds=5"),
    "dcnv2 without pairs": _model("dcnv2", without="pairs"),
    "dcnv2 without statistics": _model("dcnv2", without="statistics"),
    "dcnv2 of ids alone": _model("dcnv2", without="numbers"),
    "wide transformer": _model(*WIDE),
    "wide transformer, one ad token": _model(*WIDE, "ranking.ad_tokens=1"),
    "wide transformer, two ad tokens": _model(*WIDE, "ranking.ad_tokens=2"),
    "transformer without pairs": _model(*TRANSFORMER, without="pairs"),
    "transformer without statistics": _model(*TRANSFORMER, without="statistics"),
    "lightgbm without statistics": Row(without="statistics", task=None),
    "towers": Row(task="retrieval"),
    "towers without statistics": Row(without="statistics", task="retrieval"),
}


def main() -> None:
    """Make every fit that is missing."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("data", type=Path, help="a prepared data set")
    arguments.add_argument("--keep", type=Path, required=True, help="folder of fits")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    arguments.add_argument("--set", nargs="*", default=[], help="key=value ...")
    args = arguments.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    with process_group("cpu") as process:
        for seed in args.seeds:
            for name in args.rows:
                path = args.keep / f"{name}-{seed}.npz"
                if path.exists():
                    continue
                with reduced(args.data, ROWS[name].without) as data:
                    fit = _fit(ROWS[name], data, seed, args.set, process)
                np.savez(path, allow_pickle=False, **fit)
                print(name, seed, f"{fit['seconds']:.0f} s", flush=True)


@contextmanager
def reduced(data: Path, without: Without) -> Iterator[Path]:
    """The same rows with fewer columns: every reader goes by the schema."""
    schema = Schema.load(data / "schema.json")
    dense = tuple(f for f in schema.dense if not _is_off(f, without))
    with tempfile.TemporaryDirectory() as folder:
        for path in data.resolve().iterdir():
            (Path(folder) / path.name).symlink_to(path)
        (Path(folder) / "schema.json").unlink()
        schema.model_copy(update={"dense": dense}).save(Path(folder) / "schema.json")
        yield Path(folder)


def _is_off(feature: DenseFeature, without: Without) -> bool:
    if without == "pairs":
        return len(feature.sources) == 2
    if without == "statistics":
        return feature.statistic is not None
    return without == "numbers"


def _fit(
    row: Row, data: Path, seed: int, overrides: list[str], process: Process
) -> dict[str, Float64s]:
    """Train; logits of both splits, number of parameters, seconds, rows trained on."""
    if row.task is None:
        return boosting(data, seed, with_ids=row.without != "ids")
    words = [*COMMON, *row.settings, f"seed={seed}", *overrides]
    config = load_config(CONFIG, words)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(row.task, config, process, data, Path(folder))
        began = time.perf_counter()
        metrics = trainer.fit()
        seconds = time.perf_counter() - began
        logits = {
            split: trainer.evaluator.logits(trainer.model, split).logits[:, 0]
            for split in SPLITS
        }
    parameters = sum(p.numel() for p in trainer.model.parameters())
    # Early stopping may take fewer steps than the source has.
    rows = config.train.batch_size * metrics["train"]["steps"]
    return logits | _numbers(parameters, seconds, rows)


def _numbers(parameters: int, seconds: float, rows: int) -> dict[str, Float64s]:
    numbers = {"parameters": parameters, "seconds": seconds, "rows": rows}
    return {name: np.array(float(value)) for name, value in numbers.items()}


def boosting(data: Path, seed: int, with_ids: bool) -> dict[str, Float64s]:
    """LightGBM on the same numbers, and ids as categories; stopped on validation."""
    import lightgbm

    schema = Schema.load(data / "schema.json")
    click = schema.label_names[0]
    ids = [feature.name for feature in schema.sparse if with_ids]
    names = [*(feature.name for feature in schema.joined.dense), *ids]
    frames = {
        split: pl.read_parquet(data / split / "*.parquet", columns=[*names, click])
        for split in ("train", *SPLITS)
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
            **{"cat_smooth": 50, "verbose": -1, "num_threads": 1},
        },
        sets["train"],
        num_boost_round=1000,
        valid_sets=[sets["valid"]],
        callbacks=[lightgbm.early_stopping(50, verbose=False)],
    )
    seconds = time.perf_counter() - began
    scores = {s: model.predict(sets[s].data, raw_score=True) for s in SPLITS}
    trees = model.best_iteration
    return scores | _numbers(31 * trees, seconds, len(frames["train"]) * trees)


if __name__ == "__main__":
    main()
