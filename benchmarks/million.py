"""A million ads: one request after another, end to end.

    adrec prepare --config configs/million_ads.yaml --out RUN
    adrec train retrieval --out RUN && adrec export --out RUN
    adrec index build --out RUN && adrec train ranking --out RUN
    python benchmarks/million.py RUN

Requests: from raw columns to ten ads, 500 candidates, one thread, 500 users one after
another, each of them counted; then users/s of many at a time, as `adrec recommend
--batch` takes them. Encoding so many ads is measured by `encoding.py`.
The time from the start of a process to its first answer stands beside them, and what
the gate measured when it published the index.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from timing import interleave, keep_result

from torchrec_adrec.data.request import raw_users
from torchrec_adrec.runs.stages import stage_folder
from torchrec_adrec.serve.recommender import Recommender

ROUNDS, MANY = 3, 200
FIRST_ANSWER = """
import json, sys, time
from pathlib import Path
from torchrec_adrec.serve.recommender import Recommender
run = Path(sys.argv[1])
users = json.loads((run / "data/example_users.json").read_text())
Recommender.load(run, engine=sys.argv[2]).recommend(users[0])
"""


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--engine", default="auto", help="of the ranker")
    args = parser.parse_args()
    torch.set_num_threads(1)
    first = [_first_answer(args.run, args.engine) for _ in range(3)]
    requests = _requests(args.run, args.requests, args.engine)
    figures = {
        "engine": args.engine,
        "seconds to the first answer": first,
        "requests": requests,
        "users per second in a batch": _batch(args.run, args.engine),
        "gate": _gate(args.run),
    }
    keep_result("million", figures)
    Console(width=100).print(_table(requests))


def _first_answer(run: Path, engine: str) -> float:
    """Seconds from the start of a process to its first answer, imports included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST_ANSWER, str(run), engine], check=True)
    return round(time.perf_counter() - began, 2)


def _requests(run: Path, count: int, engine: str) -> dict[str, dict[str, float]]:
    """Milliseconds of each stage of single requests, and of whole calls."""
    recommender = Recommender.load(run, engine=engine)
    users = json.loads((run / "data/example_users.json").read_text())
    stages: dict[str, list[float]] = {}
    ask: Callable[[Any], Any] = partial(recommender.recommend, top=10)
    for number in range(count):
        began = time.perf_counter()
        answer = ask(users[number % len(users)])
        whole = (time.perf_counter() - began) * 1e3
        for name, value in (answer.milliseconds | {"end to end": whole}).items():
            stages.setdefault(name, []).append(value)
    return {
        name: {f"p{q}": round(float(np.percentile(v, q)), 2) for q in (50, 95, 99)}
        for name, v in stages.items()
    }


def _batch(run: Path, engine: str) -> float:
    """Users/s of `Recommender.recommend_many`, the median of some rounds."""
    recommender = Recommender.load(run, engine=engine)
    users = json.loads((run / "data/example_users.json").read_text())[:MANY]
    raw = raw_users(pl.DataFrame(users), recommender.encoder.schema)

    def recommend() -> None:
        for _ in recommender.recommend_many(raw, 10):
            pass

    seconds = interleave({"batch": recommend}, ROUNDS)["batch"]
    return round(len(users) / median(seconds), 1)


def _gate(run: Path) -> dict[str, Any]:
    """What the gate of the published index measured."""
    # That of the version that was asked above, and not of the newest: an index may have
    # been rolled back.
    return dict(json.loads((stage_folder(run, "index") / "gate.json").read_text()))


def _table(requests: dict[str, dict[str, float]]) -> Table:
    table = Table("milliseconds", "p50", "p95", "p99")
    for name, values in requests.items():
        table.add_row(name, *(f"{values[q]:.2f}" for q in ("p50", "p95", "p99")))
    return table


if __name__ == "__main__":
    main()
