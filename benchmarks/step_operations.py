"""Operations of one steady training step of the canonical towers, by part, as JSON.

    python benchmarks/step_operations.py --worker WAY BATCH FOLDER

`before.py` runs it with the code of two commits, so it imports what both have. The way
is "ours, float32" or "torchrec plain, "; the folder is prepared. On a GPU each of these
operations is a launch. Ours takes the branches that it takes there.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import training
from operations import Operations
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer

from torchrec_adrec.distributed.process import process_group

# By then the alarm has had its first rows, which it looks at on the host.
WARM = 6
EXCHANGES = ("input_dist", "compute", "output_dist", "compute_and_output_dist")
# What decides between a CPU's and a device's branch, where a commit has it.
BRANCHES = {
    ("torchrec_adrec.losses.softmax", "in_large_blocks"): True,
    ("torchrec_adrec.tasks.guard", "reading_is_free"): False,
}


def main() -> None:
    """Count and print."""
    way, size, data = sys.argv[2:]
    as_on_a_device()
    with process_group("cpu") as process:
        kind, _, precision = way.partition(", ")
        step = training.MAKERS[kind](Path(data), int(size), precision, process)
        for _ in range(WARM):
            step()
        operations = Operations()
        watch(operations)
        with operations:
            step()
    figures = {
        "total": operations.total,
        "parts": dict(operations.counts),
        "waits": sorted(operations.waits),
    }
    print("COUNTS", json.dumps(figures), flush=True)


def as_on_a_device() -> None:
    """Take the branches of a GPU."""
    for (module, name), value in BRANCHES.items():
        try:
            setattr(importlib.import_module(module), name, lambda _, v=value: v)
        except ModuleNotFoundError:  # the older commit has a single branch
            continue


def watch(operations: Operations) -> None:
    """Count lookups and their exchange, backward and the optimizers as parts."""
    collection: Any = ShardedEmbeddingBagCollection
    parts = [(collection, name, "lookup") for name in EXCHANGES]
    parts += [(torch.Tensor, "backward", "backward")]
    parts += [(CombinedOptimizer, "step", "optimizer")]
    try:
        alone = importlib.import_module("torchrec_adrec.distributed.alone")
        parts += [(alone.DirectLookup, "__call__", "lookup")]
    except ModuleNotFoundError:
        pass
    for owner, name, part in parts:
        setattr(owner, name, operations.during(part, getattr(owner, name)))


if __name__ == "__main__":
    main()
