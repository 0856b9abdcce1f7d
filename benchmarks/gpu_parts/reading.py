"""Training from Parquet, by both readers, beside training from memory."""

import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from training import canonical, write

from gpu_parts.steppers import wait
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import build
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.precision import choose_precision
from torchrec_adrec.training.step_runner import StepRunner

ROWS = {"cuda": 4_000_000, "cpu": 4_000}
WARM = 8  # steps: the first window is decoded, graphs are captured


def measure(process: Process, args: Namespace) -> dict[str, Any]:
    """Samples/s of an epoch in bfloat16, without its first steps."""
    device = process.device.type
    figures: dict[str, Any] = {"rows": ROWS[device]}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write(data, ROWS[device])
        for size in args.batch_size[-2:]:
            for reader in ("thread", "process"):
                rate = _rate(data, size, reader, process)
                figures[f"{size}, {reader}"] = rate
    return figures


def _rate(data: Path, size: int, reader: str, process: Process) -> int:
    config = canonical(size, "bfloat16")
    train = config.train.model_copy(update={"reader": reader, "epochs": 2})
    config = config.model_copy(update={"train": train})
    schema = Schema.load(data / "schema.json")
    source = BatchSource(data, schema, train, config.seed, process, data)
    sharded = build("retrieval", schema, config, process)
    precision = choose_precision(config.train.precision, process.device)
    steps = StepRunner(sharded, source, process, train, config.seed, precision)
    for _ in range(WARM):
        steps.run_step()
    wait(process)
    count = source.steps - WARM - 4  # those read ahead at the end would be missing
    started = time.perf_counter()
    for _ in range(count):
        steps.run_step()
    wait(process)
    seconds = time.perf_counter() - started
    for _ in range(4):
        steps.run_step()
    return round(size * count / seconds)
