"""Steps on the device beside the CPU's, from the same weights; graphs beside eager."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from training import canonical

from gpu_parts.steppers import ours, ready_batches
from torchrec_adrec.distributed.process import Process

TESTS = Path(__file__).parents[2] / "tests"
sys.path += [str(TESTS), str(TESTS / "distributed")]

SHARDINGS = ("table_wise", "row_wise", "column_wise", "mix")
STEPS = 20
SIZES = {"cuda": 2048, "cpu": 64}


def measure(process: Process, args: Namespace) -> dict[str, Any]:
    """Largest differences of a weight and of a loss after fifty steps."""
    import fifty_steps

    host = Process(0, 1, 1, torch.device("cpu"))
    figures: dict[str, Any] = {}
    for name in SHARDINGS:
        case = fifty_steps.CASES[name]
        on_device, on_host = (
            fifty_steps.train(case, p)["results"] for p in (process, host)
        )
        figures[name] = {
            kind: max(
                _apart(on_device[kind][n], on_host[kind][n]) for n in on_device[kind]
            )
            for kind in on_device
        }
    return figures | {"graphs": _graphs(process)}


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.cpu() - other.cpu()).abs().max())


def _graphs(process: Process) -> dict[str, Any]:
    """Losses of twenty steps as graphs and without, with dropout, which must be drawn
    alike, and gradients that are gathered over two steps.
    """
    size = SIZES[process.device.type]
    batches, schema = ready_batches(size, process)
    figures: dict[str, list[float]] = {}
    for way in ("true", "false"):
        config = canonical(size, "float32")
        train = config.train.model_copy(update={"graphs": way == "true"})
        towers = config.retrieval.model_copy(
            update={
                "dropout": 0.2,
                "optimizer": config.retrieval.optimizer.model_copy(
                    update={"accumulate": 2}
                ),
            }
        )
        config = config.model_copy(update={"train": train, "towers": towers})
        step = ours(config, batches, schema, process)
        figures[way] = [float(step().loss) for _ in range(STEPS)]
    gaps = [abs(a - b) for a, b in zip(figures["true"], figures["false"], strict=True)]
    return {"largest_gap": max(gaps), "losses": figures["true"][:: STEPS - 1]}
