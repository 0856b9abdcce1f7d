"""A training step beside that of an older commit: speed on this CPU, operations.

    git worktree add /tmp/before COMMIT
    python benchmarks/before.py /tmp/before
    python benchmarks/before.py /tmp/before --operations

Both train the canonical towers of `training.py`, each with the code and the settings of
its commit, in processes that take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from timing import keep_result
from turns import Worker

ROOT = Path(__file__).parents[1]
WRITE = (
    "import sys, training; from pathlib import Path;"
    "training.write(Path(sys.argv[1]), int(sys.argv[2]))"
)
PLAIN = "torchrec plain, "
EPOCH = 40  # steps; training goes on with the next one


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("before", type=Path, help="a checkout of the older commit")
    arguments.add_argument("--batch-size", type=int, nargs="+", default=[2048, 8192])
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--way", default="ours, float32")
    arguments.add_argument("--operations", action="store_true")
    args = arguments.parse_args()
    checkouts = {"before": args.before.resolve(), "after": ROOT}
    with tempfile.TemporaryDirectory() as folder:
        data = {name: Path(folder) / name for name in checkouts}
        for name, checkout in checkouts.items():
            # Each with its own code: what a prepared folder holds has changed too.
            data[name].mkdir()
            rows = str(max(args.batch_size) * EPOCH)
            write = [sys.executable, "-P", "-c", WRITE, str(data[name]), rows]
            environment = {"PYTHONPATH": f"{checkout}{os.pathsep}{checkout}/benchmarks"}
            subprocess.run(write, env=os.environ | environment, check=True)
        if args.operations:
            keep_result("before_operations", operations(checkouts, data, args))
        else:
            sizes = {str(b): speed(checkouts, data, b, args) for b in args.batch_size}
            keep_result("before", {"way": args.way, "by_batch_size": sizes})


def speed(
    checkouts: dict[str, Path],
    data: dict[str, Path],
    size: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Samples/s by turns."""
    workers = {
        name: Worker(
            str(checkout / "benchmarks/training.py"),
            [args.way, str(size), str(data[name])],
            checkout=checkout,
        )
        for name, checkout in checkouts.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(args.rounds + 1):
        for name, worker in workers.items():
            spent = worker.block()
            if number:
                seconds[name].append(spent)
    peaks = {name: worker.end() for name, worker in workers.items()}
    before, after = (median(seconds[name]) for name in ("before", "after"))
    pairs = zip(seconds["before"], seconds["after"], strict=True)
    return {
        "samples_per_second": {n: round(size / median(s)) for n, s in seconds.items()},
        "ratio_of_medians": round(before / after, 3),
        "median_of_ratios": round(median(b / a for b, a in pairs), 3),
        "ratio_of_fastest": round(min(seconds["before"]) / min(seconds["after"]), 3),
        "peak_megabytes": peaks,
        "seconds": seconds,
    }


def operations(
    checkouts: dict[str, Path], data: dict[str, Path], args: argparse.Namespace
) -> dict[str, Any]:
    """See `step_operations.py`; plain TorchRec is that of this commit."""
    figures: dict[str, Any] = {}
    ways = (("before", args.way), ("after", args.way), ("after", PLAIN))
    for size in args.batch_size:
        for name, way in ways:
            folder, checkout = str(data[name]), checkouts[name]
            paths = (checkout, checkout / "benchmarks", ROOT / "tests/training")
            # -P: not the scripts beside this file, but those of the checkout.
            script = [sys.executable, "-P", str(ROOT / "benchmarks/step_operations.py")]
            done = subprocess.run(
                [*script, "--worker", way, str(size), folder],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            (line,) = (x for x in done.stdout.splitlines() if x.startswith("COUNTS "))
            title = "plain" if way == PLAIN else name
            counts = json.loads(line.removeprefix("COUNTS "))
            figures.setdefault(str(size), {})[title] = counts
    return figures


if __name__ == "__main__":
    main()
