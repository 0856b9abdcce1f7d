"""Samples a second of training each ranker, beside a plain TorchRec DLRM trainer.

    python benchmarks/ranker_speed.py RUN/data --rounds 5

All take turns on the same rows at the sizes of `configs/criteo_kaggle.yaml`; ours read
Parquet as always, the plain trainer's batches lie in memory.
"""

import argparse
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from baselines import torchrec_dlrm
from rankers import CONFIG
from timing import interleave, keep_result, ratio

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.models.rankers.registry import RANKERS
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import build
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.precision import MatmulPrecision
from torchrec_adrec.training.step_runner import StepRunner

PLAIN = "plain TorchRec DLRM"
WAYS = {
    **{name: (f"ranking.model={name}",) for name in RANKERS},
    "5 dcnv2": ("ranking.seeds=5",),
}


def main() -> None:
    """Time blocks of steps in turns."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("data", type=Path, help="a prepared data set")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=20, help="of a block")
    arguments.add_argument("--batch-size", type=int, default=512)
    args = arguments.parse_args()
    loop = [f"train.batch_size={args.batch_size}", "ranking.epochs=1000"]
    loop += ["train.dead_model=warn", "train.health_every=0"]
    with process_group("cpu") as process:
        steps = {
            name: _ours(args.data, load_config(CONFIG, [*words, *loop]), process)
            for name, words in WAYS.items()
        }
        steps[PLAIN] = _plain(args.data, load_config(CONFIG, loop), process)
        blocks = {name: _repeat(step, args.steps) for name, step in steps.items()}
        seconds = interleave(blocks, args.rounds)
    rows = args.steps * args.batch_size
    keep_result(
        "ranker_speed",
        {
            "batch_size": args.batch_size,
            "samples_per_second": {
                n: round(rows / median(s)) for n, s in seconds.items()
            },
            "times_the_plain_trainer": {
                name: round(ratio(seconds, PLAIN, name), 2) for name in WAYS
            },
            "seconds": seconds,
        },
    )


def _repeat(step: Callable[[], Any], count: int) -> Callable[[], None]:
    def block() -> None:
        for _ in range(count):
            step()

    return block


def _source(data: Path, config: Config, process: Process) -> BatchSource:
    schema = Schema.load(data / "schema.json")
    loop = config.loop_of("ranking")
    return BatchSource(data, schema, loop, config.seed, process, data)


def _ours(data: Path, config: Config, process: Process) -> Callable[[], Any]:
    source = _source(data, config, process)
    sharded = build("ranking", source.schema, config, process)
    precision = MatmulPrecision("highest", False)
    return StepRunner(
        sharded, source, process, config.train, config.seed, precision
    ).run_step


def _plain(data: Path, config: Config, process: Process) -> Callable[[], Any]:
    source = _source(data, config, process)
    batches = [
        torchrec_dlrm.plain_batch(batch) for batch in islice(source.batches(0), 16)
    ]
    pipeline, ready = torchrec_dlrm.build(source.schema, config), cycle(batches)
    return lambda: pipeline.progress(ready)


if __name__ == "__main__":
    main()
