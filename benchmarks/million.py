"""A million ads: encoding them, and one request after another, end to end.

    adrec prepare --config configs/million_ads.yaml --out RUN
    adrec train retrieval --out RUN && adrec export --out RUN
    adrec index build --out RUN && adrec train ranking --out RUN
    python benchmarks/million.py RUN

Encoding: ads/s of `adrec export` (catalog columns to written files) beside the bare
tower on batches that lie in memory, in turns. Requests: from raw
columns to ten ads, 500 candidates, one thread, 500 users one after another, each of
them counted; then users/s of many at a time, as `adrec recommend --batch` takes them.
The time from the start of a process to its first answer stands beside them, and what
the gate measured when it published the index.
"""

import argparse
import json
import subprocess
import sys
import tempfile
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
from timing import interleave, keep_result, ratio

from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.request import raw_users
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.export.encode import encode_parts
from torchrec_adrec.export.parts import Parts
from torchrec_adrec.index.manifest import EmbeddingManifest
from torchrec_adrec.schema import AD_ID, Schema, Side
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.sharded import restore_whole

ROUNDS, BATCH, MANY = 3, 4096, 200
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
    with process_group("cpu") as process:
        encoding = _encoding(args.run, process)
    first = [_first_answer(args.run, args.engine) for _ in range(3)]
    requests = _requests(args.run, args.requests, args.engine)
    figures = {
        "engine": args.engine,
        "encoding": encoding,
        "seconds to the first answer": first,
        "requests": requests,
        "users per second in a batch": _batch(args.run, args.engine),
        "gate": _gate(args.run),
    }
    keep_result("million", figures)
    Console(width=100).print(_table(requests))


def _encoding(run: Path, process: Process) -> dict[str, Any]:
    """Time the export of all ads, and the tower alone on the same rows."""
    data = run / "data"
    schema, catalog = Schema.load(data / "schema.json"), load_catalog(data)
    task, _ = restore_whole("retrieval", run, schema)
    tower, columns = task.model.ad_tower, schema.columns_of(Side.AD)
    similarity = EmbeddingManifest.load(run / "export").similarity
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(10**9))

        def export() -> None:
            out = Path(folder) / f"{next(numbers)}"
            out.mkdir()
            parts = Parts(out, catalog[AD_ID].to_numpy(), "fp32", {})
            encode_parts(tower, catalog, schema, similarity, BATCH, parts, process)

        loaded = [
            tower_input({n: b[n].to_numpy() for n in columns}, schema, Side.AD)
            for b in catalog.iter_slices(BATCH)
        ]

        @torch.no_grad()
        def bare() -> None:
            for batch in loaded:
                tower(batch)

        seconds = interleave({"export": export, "bare tower": bare}, ROUNDS)
    return {
        "ads": len(catalog),
        "ads_per_second": {
            name: round(len(catalog) / median(s)) for name, s in seconds.items()
        },
        "export_over_bare_tower": round(ratio(seconds, "bare tower", "export"), 3),
    }


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
    gates = sorted((run / "index").rglob("gate.json"), key=lambda p: p.stat().st_mtime)
    gate: dict[str, Any] = json.loads(gates[-1].read_text())
    return gate


def _table(requests: dict[str, dict[str, float]]) -> Table:
    table = Table("milliseconds", "p50", "p95", "p99")
    for name, values in requests.items():
        table.add_row(name, *(f"{values[q]:.2f}" for q in ("p50", "p95", "p99")))
    return table


if __name__ == "__main__":
    main()
