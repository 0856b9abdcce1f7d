"""`adrec plan`'s step beside the measured one: milliseconds and launches.

    python benchmarks/plan_truth.py                      # benchmarks/results/gpu*.json
    python benchmarks/plan_truth.py my/gpu.json

Reads what `benchmarks/gpu.py` has kept of the canonical towers on one card: `machine`
(`card`), `speed` by batch (`milliseconds` by way), `counts` (`batch_size`, and by way
`launches`, `graphs`, `copies`). What is off by more than a fifth is marked; correct the
figures at the top of `planning/launches.py` or of `planning/step_time.py` then.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from timing import RESULTS
from training import canonical, make_schema

from torchrec_adrec.planning.cluster import gpus, parse
from torchrec_adrec.planning.estimate import Estimate, estimate
from torchrec_adrec.planning.job import Job
from torchrec_adrec.planning.launches import all_of

FIFTH = 0.2
OURS = "ours, "
HEAD = "batch precision   measured ms  plan ms  ratio  launches  plan  limited by"


def main() -> None:
    """Print a table for each file."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("files", type=Path, nargs="*")
    files = arguments.parse_args().files or sorted(RESULTS.glob("gpu*.json"))
    if not files:
        print(f"nothing measured: no gpu*.json in {RESULTS}; run benchmarks/gpu.py")
    for path in files:
        print(path)
        for line in compare(json.loads(path.read_text())):
            print(line)


def compare(figures: dict[str, Any]) -> Iterator[str]:
    """One line a batch and precision of ours; a ratio above 1: the plan is too slow."""
    card = figures.get("machine", {}).get("card")
    if card is None:
        yield "not measured on a GPU"
        return
    name = gpu_of(card)
    if name is None:
        yield f"no figures of {card!r} in planning/gpus.yaml"
        return
    counts = figures.get("counts", {})
    yield HEAD
    for batch, speed in figures.get("speed", {}).items():
        for way, measured in speed.get("milliseconds", {}).items():
            if way.startswith(OURS) and "+" not in way:
                counted = {}
                if counts.get("batch_size") == int(batch):
                    counted = counts.get(way, {})
                precision = way.removeprefix(OURS)
                planned = planned_step(name, int(batch), precision)
                yield _line(planned, precision, measured, counted)


def planned_step(gpu: str, batch: int, precision: str) -> Estimate:
    """The canonical towers on one card."""
    job = Job.of(make_schema(), canonical(batch, "float32"), batch)
    # Not through the settings: a GPU may have made products that they do not know yet.
    return estimate(replace(job, precision=precision), parse(f"1x{gpu}"))


def gpu_of(card: str) -> str | None:
    """`NVIDIA A100-SXM4-80GB` -> `A100-80GB`."""
    models = [name for name in gpus() if name.split("-")[0] in card]
    exact = [name for name in models if name.split("-")[1] in card.replace(" ", "")]
    return next(iter(exact or models), None)


def _line(
    planned: Estimate, precision: str, measured: float, counted: dict[str, float]
) -> str:
    ratio, calls = planned.step_ms / measured, all_of(planned.time.calls)
    launches = counted.get("launches", 0) + counted.get("graphs", 0)
    off = "" if abs(ratio - 1) <= FIFTH else "  off by more than a fifth"
    return (
        f"{planned.batch:>6} {precision:<9} {measured:>12.2f} {planned.step_ms:>8.2f}"
        f" {ratio:>6.2f} {launches or '-':>9} {calls.launches:>5}"
        f"  {planned.time.limit}{off}"
    )


if __name__ == "__main__":
    main()
