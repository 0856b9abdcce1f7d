"""What a GPU makes of this project: speed, exactness, waits. `make gpu-check`.

    python benchmarks/gpu.py                 # one card, under four minutes
    python benchmarks/gpu.py --device cpu    # small, so that it cannot rot
    python benchmarks/gpu.py --parts speed exact

Parts, each printed and kept in benchmarks/results/gpu.json:

    exact    the softmax's kernel and blocks against the plain softmax in float64
    parity   fifty steps of the towers against the CPU's, from the same weights
    speed    samples/s of the canonical towers, ours and plain TorchRec's, interleaved
    counts   launches, copies and waits of a step, by the profiler
    waits    host reads that torch's own debug mode sees in a steady step
    reading  training from Parquet, by a thread and by a process
    learnt   test AUC after one epoch, ours and plain TorchRec's with the same loss
    ranker   training the ranker, and its 500 candidates
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_parts import counts, exact, learnt, parity, ranker, reading, speed, waits
from timing import RESULTS

from torchrec_adrec.distributed.process import Process, process_group

PARTS: dict[str, Callable[[Process, argparse.Namespace], Any]] = {
    "exact": exact.measure,
    "parity": parity.measure,
    "speed": speed.measure,
    "counts": counts.measure,
    "waits": waits.measure,
    "reading": reading.measure,
    "learnt": learnt.measure,
    "ranker": ranker.measure,
}


def main() -> None:
    """Measure the parts one after the other; one that fails does not stop the next."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    arguments.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    arguments.add_argument("--batch-size", type=int, nargs="+")
    arguments.add_argument("--ways", nargs="+")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    args = arguments.parse_args()
    failed = []
    with process_group(args.device) as process:
        cuda = process.device.type == "cuda"
        args.batch_size = args.batch_size or ([2048, 8192, 65536] if cuda else [256])
        figures: dict[str, Any] = {"machine": machine(process)}
        for name in args.parts:
            started = time.perf_counter()
            try:
                figures[name] = PARTS[name](process, args)
            except Exception:  # the next part may tell why
                figures[name] = {"failed": traceback.format_exc()}
                failed.append(name)
            seconds = round(time.perf_counter() - started, 1)
            print(f"== {name} ({seconds} s)", flush=True)
            print(json.dumps(figures[name], indent=1), flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(figures, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def machine(process: Process) -> dict[str, Any]:
    """What it ran on."""
    versions = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    if process.device.type == "cuda":
        versions["card"] = torch.cuda.get_device_name(process.device)
        versions["cuda"] = str(torch.version.cuda)
    return versions


if __name__ == "__main__":
    main()
