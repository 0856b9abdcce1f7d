"""The ranker: its training, and one request's 500 candidates."""

import time
from argparse import Namespace
from statistics import median, quantiles
from typing import Any

import torch
from training import canonical

from gpu_parts.steppers import ours, ready_batches, wait
from torchrec_adrec.config.run import Config
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.schema import Schema, Side
from torchrec_adrec.tasks.task import build_task

CANDIDATES = 500
REQUESTS = {"cuda": 100, "cpu": 3}
WARM = 3
SIZES = {
    "default": RankingConfig(),
    "256 wide, 8 heads, 3 layers": RankingConfig(
        model_dim=256, heads=8, layers=3, feedforward_dim=1024
    ),
}


def measure(process: Process, args: Namespace) -> dict[str, Any]:
    """Samples/s of training and milliseconds of a request, by size and precision."""
    cuda = process.device.type == "cuda"
    size = 8192 if cuda else 64
    batches, schema = ready_batches(size, process, 4)
    figures: dict[str, Any] = {"batch_size": size, "candidates": CANDIDATES}
    for name, ranker in SIZES.items():
        for precision in ("float32", "bfloat16"):
            config = canonical(size, precision).model_copy(update={"ranking": ranker})
            step = ours(config, batches, schema, process, "ranking")
            figures[f"{name}, {precision}"] = {
                "samples_per_second": round(size / _seconds(step, process)),
                "milliseconds_a_request": _request(config, schema, process),
            }
    return figures


def _seconds(step: Any, process: Process) -> float:
    for _ in range(6):
        step()
    spent = []
    for _ in range(5):
        wait(process)
        started = time.perf_counter()
        for _ in range(3):
            step()
        wait(process)
        spent.append((time.perf_counter() - started) / 3)
    return median(spent)


@torch.inference_mode()
def _request(config: Config, schema: Schema, process: Process) -> dict[str, float]:
    """Score 500 ads for one user; median and the slowest of a hundred."""
    device = process.device
    model = build_task("ranking", schema, config).model.eval().to(device)
    generator = torch.Generator().manual_seed(0)
    rows = {Side.USER: 1, Side.AD: CANDIDATES}
    inputs = []
    for side, count in rows.items():
        columns = {
            f.name: torch.randint(
                f.num_embeddings, (count,), generator=generator
            ).numpy()
            for f in schema.sparse_of(side)
        }
        inputs.append(tower_input(columns, schema, side).to(device))
    low = config.train.precision == "bfloat16"
    spent = []
    for _ in range(REQUESTS[device.type] + WARM):
        wait(process)
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            model(*inputs).float().cpu()
        spent.append((time.perf_counter() - started) * 1e3)
    spent = spent[WARM:]
    return {
        "median": round(median(spent), 2),
        "p99": round(quantiles(spent, n=100)[98], 2),
    }
