"""What the trainers of `training.py` have learnt of the same rows in the same order.

    python benchmarks/training_auc.py RUN/data --seeds 0 1 2 3 4 5

One epoch of the canonical towers (no click bias, alpha .5) at batch 512, test AUC:
ours in float32 and bfloat16, the plain TorchRec trainer with its own loss, and with the
mask of accidental hits, the loss that ours has. AUC differs by loss, not by trainer, if
the paired difference to the masked one lies within its noise.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from baselines import torchrec_plain
from sklearn.metrics import roc_auc_score
from timing import keep_result
from training import CANONICAL

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.loader.collate import batch_columns, collate
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.evaluation.predict import split_logits
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import build
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.precision import choose_precision
from torchrec_adrec.training.step_runner import StepRunner

BATCH = 512
SAME_LOSS = "torchrec plain, masked"


def main() -> None:
    """Train, judge, keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("data", type=Path, help="a prepared data set")
    arguments.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    args = arguments.parse_args()
    by_way: dict[str, list[float]] = {}
    with process_group("cpu") as process:
        for seed in args.seeds:
            for way, auc in _seed(args.data, seed, process).items():
                by_way.setdefault(way, []).append(auc)
    keep_result(
        "training_auc", {"seeds": args.seeds, "test_auc": by_way, **_summary(by_way)}
    )


def _seed(data: Path, seed: int, process: Process) -> dict[str, float]:
    settings = {
        precision: load_config(
            None,
            [
                *(*CANONICAL, f"seed={seed}"),
                *(f"train.batch_size={BATCH}", f"train.precision={precision}"),
            ],
        )
        for precision in ("float32", "bfloat16")
    }
    by_way = {
        f"ours, {p}": ours(data, config, process) for p, config in settings.items()
    }
    settings32 = settings["float32"]
    by_way["torchrec plain"] = plain(data, settings32, process, masked=False)
    by_way[SAME_LOSS] = plain(data, settings32, process, masked=True)
    return by_way


def _summary(by_way: dict[str, list[float]]) -> dict[str, Any]:
    """Means with their spread, and paired differences to the same loss."""
    apart = {
        way: [auc - other for auc, other in zip(aucs, by_way[SAME_LOSS], strict=True)]
        for way, aucs in by_way.items()
        if way != SAME_LOSS
    }
    figures = by_way | {f"{way} - {SAME_LOSS}": values for way, values in apart.items()}
    return {
        "mean": {name: round(mean(values), 4) for name, values in figures.items()},
        "sd": {name: round(stdev(values), 4) for name, values in figures.items()},
    }


def ours(data: Path, config: Config, process: Process) -> float:
    """The trainer's of this project."""
    schema = Schema.load(data / "schema.json")
    train, seed = config.train, config.seed
    source = BatchSource(data, schema, train, seed, process, data)
    sharded = build("retrieval", schema, config, process)
    precision = choose_precision(config.train.precision, process.device)
    steps = StepRunner(sharded, source, process, train, seed, precision)
    for _ in range(source.steps):
        steps.run_step()
    steps.detach()
    logits = split_logits(sharded.model, data / "test", schema, process, 4096)
    score, label = logits.predictions(schema)["click"]
    return float(roc_auc_score(label, score))


def plain(data: Path, config: Config, process: Process, masked: bool) -> float:
    """The plain trainer's."""
    torch.manual_seed(config.seed)
    schema = Schema.load(data / "schema.json")
    source = BatchSource(data, schema, config.train, config.seed, process, data)
    device = process.device
    model, pipeline = torchrec_plain.build(
        schema, config.retrieval, BATCH, masked, device
    )
    batches = source.batches(0)
    for _ in range(source.steps):
        pipeline.progress(batches)
    pipeline.detach()
    reader = Reader(Split.open(data / "test"), batch_columns(schema), 4096)
    test = [collate(rows, schema).to(device) for rows in reader.epoch()]
    kept = torch.cat([batch.weights for batch in test]) > 0
    label = torch.cat([batch.labels[:, 0] for batch in test])[kept]
    logits = torchrec_plain.click_logits(model, test)[kept]
    return float(roc_auc_score(label.cpu(), logits.cpu()))


if __name__ == "__main__":
    main()
