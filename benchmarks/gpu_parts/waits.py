"""Host reads in a steady step, as torch's own debug mode sees them.

It misses pageable copies and what torch.distributed waits for: `counts` sees those.
"""

import warnings
from argparse import Namespace
from typing import Any

import torch

from gpu_parts.steppers import ready_batches, stepper
from torchrec_adrec.distributed.process import Process

STEPS, WARM = 10, 6


def measure(process: Process, args: Namespace) -> dict[str, Any]:
    """Of our step in float32, eager and as graphs."""
    if process.device.type != "cuda":
        return {"not measured": "a GPU's"}
    size = args.batch_size[0]
    batches, schema = ready_batches(size, process)
    step = stepper("ours, float32", size, batches, schema, process)
    for _ in range(WARM):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            step()
    torch.cuda.set_sync_debug_mode("default")
    places = sorted({f"{w.filename}:{w.lineno} {w.message}"[:300] for w in caught})
    return {"reads_a_step": len(caught) / STEPS, "places": places[:20]}
