"""Trainers that take one step when they are called, on batches that lie in memory."""

import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from baselines import torchrec_plain
from training import canonical, write

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import build
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.precision import choose_precision
from torchrec_adrec.training.step_runner import StepRunner

READY = 12  # batches in memory, of which fewer would leave their rows in the cache
WAYS = (
    *("ours, float32", "ours, tf32", "ours, bfloat16", "ours, bfloat16+compile"),
    *("plain, float32", "plain, tf32", "plain, bfloat16"),
)
CPU_WAYS = ("ours, float32", "ours, bfloat16", "plain, float32", "plain, bfloat16")
MATMUL = {"float32": "highest", "tf32": "high", "bfloat16": "high"}


class InMemory:
    """Stands in a trainer's `BatchSource`: the same batches over and over."""

    def __init__(self, ready: list[Batch], schema: Schema) -> None:
        self.ready, self.schema, self.steps = ready, schema, 1 << 30

    def batches(self, first: int) -> Iterator[Batch]:
        """After step `first`."""
        return islice(cycle(self.ready), first % len(self.ready), None)

    def begin(self, step: int) -> Batch:
        """The batch of a step."""
        return self.ready[(step - 1) % len(self.ready)]


def ready_batches(
    size: int, process: Process, count: int = READY
) -> tuple[list[Batch], Schema]:
    """Canonical rows, pinned where there is a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write(data, size * count)
        schema = Schema.load(data / "schema.json")
        config = canonical(size, "float32")
        source = BatchSource(data, schema, config.train, config.seed, process, data)
        batches = list(islice(source.batches(0), count))
    if process.device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    return batches, schema


def stepper(
    way: str, size: int, batches: list[Batch], schema: Schema, process: Process
) -> Callable[[], Any]:
    """One step of a way at a call; it sets the precision of products first."""
    kind, _, precision = way.partition(", ")
    config = canonical(size, precision)
    if kind == "ours":
        return ours(config, batches, schema, process)
    return _plain(config, size, precision, batches, schema, process)


def ours(
    config: Config,
    batches: list[Batch],
    schema: Schema,
    process: Process,
    task: str = "retrieval",
) -> Callable[[], Any]:
    """One step of this project's trainer."""
    sharded = build(task, schema, config, process)
    precision = choose_precision(config.train.precision, process.device)
    source: Any = InMemory(batches, schema)
    steps = StepRunner(sharded, source, process, config.train, config.seed, precision)

    def step() -> Any:
        torch.set_float32_matmul_precision(precision.setting)
        return steps.run_step()

    return step


def _plain(
    config: Config,
    size: int,
    precision: str,
    batches: list[Batch],
    schema: Schema,
    process: Process,
) -> Callable[[], Any]:
    device = process.device
    _, pipeline = torchrec_plain.build(schema, config.retrieval, size, device=device)
    ready = cycle(batches)
    low = precision == "bfloat16"

    def step() -> None:
        torch.set_float32_matmul_precision(MATMUL[precision])
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            pipeline.progress(ready)

    return step


def wait(process: Process) -> None:
    """Until the device has done all that was asked."""
    if process.device.type == "cuda":
        torch.cuda.synchronize(process.device)


def ways_of(process: Process, args: Any) -> tuple[str, ...]:
    """Those that were asked for, or all that the device has."""
    everyone = WAYS if process.device.type == "cuda" else CPU_WAYS
    return tuple(args.ways or everyone)
