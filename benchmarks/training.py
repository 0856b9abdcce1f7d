"""Training speed of the canonical two towers, beside what people write today.

python benchmarks/training.py --batch-size 2048 8192
python benchmarks/training.py --ranks            # two ranks of one thread against one
python benchmarks/training.py --memory           # peak memory by batch size
python benchmarks/training_auc.py RUN/data       # both trainers' AUC on prepared rows

Canonical: 26 tables of 5.56 million rows together, dim 16, 13 a side, [512, 256] ->
256, half click cross-entropy, half in-batch softmax, a quarter of the rows clicked.
Every way has a process of its own (allocator, threads and precision are a process's);
they take turns, a block of steps each, and the others are stopped meanwhile.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from baselines import dense_adam, torchrec_plain
from timing import keep_result, ratio
from turns import Worker, answer, commands, profiled

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.prepare.write import write_rows
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.runtime.memory import keep_freed_memory
from torchrec_adrec.schema import AD_ID, LOG_Q, Label, Schema, Side, SparseFeature
from torchrec_adrec.tasks.sharded import build
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.precision import choose_precision
from torchrec_adrec.training.step_runner import StepRunner

SIZES = np.geomspace(4, 2_290_000, 26).astype(int).tolist()  # 5.56 million in sum
CLICKED = 0.25
ADS = 50_000
WAYS = (
    *("ours, float32", "ours, bfloat16", "ours, bfloat16+compile"),
    *("torchrec plain", "torchrec plain, awake", "dense adam"),
)
STEPS = {"dense adam": 2}  # of a block; it is slow
DEFAULT_STEPS = {2048: 20, 8192: 6}
READY = 1 << 17  # rows in memory; those of fewer keep their vectors in the cache
CANONICAL = (
    "retrieval={embedding_dim: 16, hidden: [512, 256], output_dim: 256, dropout: 0,"
    " alpha: .5, temperature: .05, click_bias: false}",
    "train.dead_model=warn",  # the rows hold nothing to learn
)


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--batch-size", type=int, nargs="+", default=[2048, 8192])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--ways", nargs="+", default=list(WAYS))
    arguments.add_argument("--ranks", action="store_true")
    arguments.add_argument("--memory", action="store_true")
    arguments.add_argument("--worker", nargs=3, metavar=("WAY", "BATCH", "FOLDER"))
    args = arguments.parse_args()
    if args.worker:
        way, size, data = args.worker
        work(way, int(size), Path(data))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        rows = max(args.batch_size) * (15 * args.rounds + 8)
        write(data, rows)
        if args.memory:
            keep_result("training_memory", {"by_batch_size": memory(data)})
        elif args.ranks:
            keep_result("training_ranks", ranks(data, args))
        else:
            by_size = {str(b): compare(data, b, args) for b in args.batch_size}
            keep_result("training", {"canonical": CANONICAL, "by_batch_size": by_size})


def make_schema() -> Schema:
    """Every second table is the ad's."""
    return Schema(
        dense=(),
        sparse=tuple(
            SparseFeature(
                name=f"C{i}",
                side=Side.AD if i % 2 else Side.USER,
                source=f"C{i}",
                num_embeddings=size,
            )
            for i, size in enumerate(SIZES, 1)
        ),
        labels=(Label(name="click"),),
    )


def columns(rows: int) -> dict[str, Any]:
    """Seeded rows; small ids are frequent, as by Zipf."""
    rng = np.random.default_rng(0)
    by_size: dict[str, Any] = {
        f"C{i}": (size ** rng.random(rows) - 1).astype(np.int32)
        for i, size in enumerate(SIZES, 1)
    }
    by_size["click"] = (rng.random(rows) < CLICKED).astype(np.float32)
    by_size[AD_ID] = (ADS ** rng.random(rows)).astype(np.int64)
    by_size[LOG_Q] = -np.log(by_size[AD_ID] * np.log(ADS)).astype(np.float32)
    return by_size


def write(data: Path, rows: int) -> None:
    """A prepared data set."""
    (data / "train").mkdir()
    write_rows(data / "train/part-00000.parquet", columns(rows))
    make_schema().save(data / "schema.json")


def compare(data: Path, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """All ways at one batch size."""
    workers = {way: Worker(__file__, [way, str(size), str(data)]) for way in args.ways}
    seconds: dict[str, list[float]] = {way: [] for way in args.ways}
    for number in range(args.rounds + 1):
        for way, worker in workers.items():
            spent = worker.block()
            if number:
                seconds[way].append(spent)
    peaks = {way: worker.end() for way, worker in workers.items()}
    return {
        "samples_per_second": {w: round(size / median(s)) for w, s in seconds.items()},
        "times_faster_than_torchrec_plain": _times(seconds, "torchrec plain"),
        "times_faster_than_dense_adam": _times(seconds, "dense adam"),
        "peak_megabytes": peaks,
        "seconds": seconds,
    }


def _times(seconds: dict[str, list[float]], other: str) -> dict[str, float]:
    if other not in seconds:
        return {}
    ours = [way for way in seconds if way.startswith("ours")]
    return {way: round(ratio(seconds, other, way), 2) for way in ours}


def work(way: str, size: int, data: Path) -> None:
    """Be a worker: one rank of those that the launcher started, or alone."""
    count = STEPS.get(way, DEFAULT_STEPS.get(size, 2))
    kind, _, precision = way.partition(", ")
    with process_group("cpu") as process:
        step = MAKERS[kind](data, size, precision, process)
        for command in commands(process):
            if command == "end":
                break
            if command == "profile":
                answer(process, json.dumps(profiled(step, count)))
                continue
            started = time.perf_counter()
            for _ in range(count):
                step()
            answer(process, (time.perf_counter() - started) / count)
        answer(process, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def ours(data: Path, size: int, precision: str, process: Process) -> Callable[[], Any]:
    """The trainer of this project, reading Parquet as it always does."""
    keep_freed_memory()
    config = canonical(size, precision)
    schema, train, seed = Schema.load(data / "schema.json"), config.train, config.seed
    source = BatchSource(data, schema, train, seed, process, data)
    sharded = build("retrieval", schema, config, process)
    matmul = choose_precision(train.precision, process.device)
    return StepRunner(sharded, source, process, train, seed, matmul).run_step


def canonical(size: int, precision: str) -> Config:
    """The settings of every way."""
    name, *more = precision.split("+")
    args = [f"train.{word}=true" for word in more]
    loop = [f"train.batch_size={size}", f"train.precision={name}", "train.epochs=1000"]
    return load_config(None, [*CANONICAL, *loop, *args])


def plain(data: Path, size: int, how: str, process: Process) -> Callable[[], Any]:
    """TorchRec as its documentation has it, on batches in memory; `awake`: in a process
    with our settings of memory and threads.
    """
    if how == "awake":
        keep_freed_memory()
    schema, config = Schema.load(data / "schema.json"), canonical(size, "float32")
    source = BatchSource(data, schema, config.train, config.seed, process, data)
    ready = cycle(list(islice(source.batches(0), max(READY // size, 8))))
    source._ahead.clear()  # nobody takes their steps
    _, pipeline = torchrec_plain.build(schema, config.retrieval, size)
    return lambda: pipeline.progress(ready)


def dense(data: Path, size: int, _: str, process: Process) -> Callable[[], Any]:
    """nn.Embedding, Adam over everything, DataLoader."""
    table = pq.read_table(data / "train")
    rows = {name: table[name].to_numpy() for name in table.column_names}
    schema, config = Schema.load(data / "schema.json"), canonical(size, "float32")
    return dense_adam.DenseTrainer(rows, schema, config.retrieval, size).step


MAKERS = {"ours": ours, "torchrec plain": plain, "dense adam": dense}


def ranks(data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Two ranks of one thread against one rank of two, on the same global batches."""
    by_size = {}
    for size in args.batch_size:
        one, two = (
            Worker(__file__, ["ours, bfloat16", str(size), str(data)], ranks)
            for ranks in (1, 2)
        )
        seconds: dict[str, list[float]] = {"one": [], "two": []}
        for number in range(args.rounds + 1):
            for name, worker in (("one", one), ("two", two)):
                spent = worker.block()
                if number:
                    seconds[name].append(spent)
        costs = {"one": one.profile(), "two": two.profile()}
        one.end(), two.end()
        by_size[str(size)] = {
            "samples_per_second": {n: size / median(s) for n, s in seconds.items()},
            "two_ranks_over_one": round(ratio(seconds, "one", "two"), 3),
            "milliseconds_a_step_by_operation": costs,
            "seconds": seconds,
        }
    return by_size


def memory(data: Path) -> dict[str, dict[str, int]]:
    """Peak memory after some steps, a process for each batch size."""
    by_size: dict[str, dict[str, int]] = {}
    for way in ("ours, float32", "torchrec plain"):
        for size in (2048, 4096, 8192, 16384):
            worker = Worker(__file__, [way, str(size), str(data)])
            worker.block()
            by_size.setdefault(way, {})[str(size)] = worker.end()
    return by_size


if __name__ == "__main__":
    main()
