"""`prepare` against polars' bare parse of the same file, and against plain Python.

Each run is a process of its own, so its peak memory is its own; the three ways take
turns. polars parses every field (integers as numbers, the rest as text) and keeps
nothing. Plain Python does what `prepare` does with its dictionaries, line by line, on
the first rows only: vocabularies, mean and deviation of logarithms, ids, Parquet.

python benchmarks/prepare.py
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

from timing import keep_result

INTEGERS, FIELDS = range(1, 14), range(1, 40)
TRAIN = 0.8


def make(path: Path, out: Path, rows: int) -> None:
    """Rows of the known world, one ad per hundred rows, one user per ten."""
    from torchrec_adrec.config.data import SyntheticConfig
    from torchrec_adrec.data.adapters import synthetic

    world = SyntheticConfig(rows=rows, ads=max(rows // 100, 100), users=rows // 10 + 1)
    synthetic.write(world, 0, path, path.with_suffix(".truth"))


def ours(path: Path, out: Path, rows: int) -> None:
    """Vocabularies fitted, Parquet, catalog and report written."""
    from torchrec_adrec.runtime.memory import keep_freed_memory

    keep_freed_memory()  # as every command does
    from torchrec_adrec.config.data import DataConfig
    from torchrec_adrec.data.adapters import criteo
    from torchrec_adrec.data.prepare.prepare import prepare

    config = DataConfig(raw=(str(path),))
    prepare(config, criteo.open_data(config), out)


def polars(path: Path, out: Path, rows: int) -> None:
    """Scan and parse; the nulls of every column are counted, so all are parsed."""
    import polars as pl

    names = [f"f{i}" for i in range(40)]
    schema = {n: pl.Int64 if i < 14 else pl.String for i, n in enumerate(names)}
    scan = pl.scan_csv(
        path, separator="\t", has_header=False, schema=schema, quote_char=None
    )
    measured = scan.select(pl.len(), pl.all().null_count()).collect(engine="streaming")
    assert measured["len"].item() == rows


def python(path: Path, out: Path, rows: int) -> None:
    """The same ids and numbers, line by line, in two passes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts: list[Counter[str]] = [Counter() for _ in range(40)]
    for fields in islice(_lines(path), int(TRAIN * rows)):
        for i in FIELDS:
            counts[i][_value(i, fields[i])] += 1
    ids = [_ids(counter) for counter in counts]
    fits = {i: _fit(counts[i]) for i in INTEGERS}
    columns: list[list[float]] = [[] for _ in range(53)]
    for fields in islice(_lines(path), rows):
        columns[0].append(int(fields[0]))
        for i in FIELDS:
            columns[i].append(ids[i].get(_value(i, fields[i]), 1))
        for i in INTEGERS:
            mean, std = fits[i]
            text = fields[i]
            columns[39 + i].append((_log(text) - mean) / std if text else 0.0)
    table = pa.table({str(i): column for i, column in enumerate(columns)})
    pq.write_table(table, out / "rows.parquet", compression="none")


def _lines(path: Path) -> Iterator[list[str]]:
    with path.open() as file:
        for line in file:
            yield line.rstrip("\n").split("\t")


def _value(field: int, text: str) -> str:
    """An integer's bucket, or a hash as it is."""
    if field > 13 or not text:
        return text
    number = int(text)
    return str(math.floor(math.log(number) ** 2)) if number > 2 else text


def _ids(counter: Counter[str]) -> dict[str, int]:
    kept = [value for value, n in counter.most_common() if n >= 5 and value]
    return {"": 0} | {value: i for i, value in enumerate(kept, start=2)}


def _log(text: str) -> float:
    number = int(text)
    return math.copysign(math.log1p(abs(number)), number)


def _fit(counter: Counter[str]) -> tuple[float, float]:
    rows = [(_log(value), n) for value, n in counter.items() if value]
    total = sum(n for _, n in rows)
    mean = sum(x * n for x, n in rows) / total
    return mean, math.sqrt(sum((x - mean) ** 2 * n for x, n in rows) / total) or 1.0


WAYS = {"prepare": ours, "polars bare parse": polars, "plain Python": python}
TASKS = {"make": make} | WAYS


def measure(name: str, path: Path, rows: int) -> tuple[float, float]:
    """Seconds of the work, and GB of peak memory, of one process."""
    args = [sys.executable, __file__, "--way", name, "--file", str(path)]
    child = subprocess.Popen(
        [*args, "--rows", str(rows)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{name} failed")
    return float(printed), usage.ru_maxrss / 1e6


def run_one(name: str, path: Path, rows: int) -> None:
    """One way in this process; prints its seconds, imports included."""
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        started = time.perf_counter()
        TASKS[name](path, Path(out), rows)
        print(time.perf_counter() - started)


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=5_000_000)
    arguments.add_argument("--python-rows", type=int, default=200_000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--way", choices=TASKS, help=argparse.SUPPRESS)
    arguments.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.way:
        run_one(args.way, args.file, args.rows)
        return
    rows = dict.fromkeys(WAYS, args.rows) | {"plain Python": args.python_rows}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.tsv"
        measure("make", path, args.rows)
        for _ in range(args.rounds):
            for name in WAYS:
                measured[name].append(measure(name, path, rows[name]))
                rate = rows[name] / measured[name][-1][0]
                print(f"{name}: {rate:,.0f} rows/s", file=sys.stderr)
    rates = {n: [rows[n] / s for s, _ in runs] for n, runs in measured.items()}
    pairs = {
        n: [a / b for a, b in zip(rates["prepare"], rates[n], strict=True)]
        for n in WAYS
    }
    keep_result(
        "prepare",
        {
            "rows": rows,
            "rows_per_second": {n: round(median(r)) for n, r in rates.items()},
            "prepare_over": {n: round(median(r), 3) for n, r in pairs.items()},
            "peak_memory_gb": {n: max(m for _, m in r) for n, r in measured.items()},
            "seconds": {n: [s for s, _ in runs] for n, runs in measured.items()},
        },
    )


if __name__ == "__main__":
    main()
