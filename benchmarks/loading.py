"""Parquet -> `Batch` against reading the same columns and doing nothing with them.

Writes rows of its own: 13 numbers, 26 ids with tables of 4 to a million rows.

python benchmarks/loading.py           rows/s, beside a bare read of the row groups
python benchmarks/loading.py --train   what training loses to loading
python benchmarks/loading.py --ranks   1, 2 and 4 ranks of one machine, by thread and by
                                       process, each for itself or decoding together:
                                       rows/s of all, bytes decoded by each
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice, product
from multiprocessing import Pipe, get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from timing import interleave, keep_result, ratio
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from torchrec_adrec.arrays import Columns
from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import Config
from torchrec_adrec.data.loader.batch_memory import heap
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import batch_columns, collate
from torchrec_adrec.data.loader.feed import Feed
from torchrec_adrec.data.loader.node_windows import NodeWindows, shared_path
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.reader_process import nameless_memory, read_in_process
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.prepare.row_buffer import RowBuffer
from torchrec_adrec.data.prepare.write import write_rows
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.runtime.prefetch import prefetch
from torchrec_adrec.schema import (
    AD_ID,
    LOG_Q,
    DenseFeature,
    Label,
    Schema,
    Side,
    SparseFeature,
)
from torchrec_adrec.tasks.sharded import build

SIZES = np.geomspace(4, 1_000_000, 26).astype(int).tolist()
AD = {2, 14, 15, 18, 25}
FILE_ROWS = 262_144  # about what `prepare` writes
STEPS = 50  # of one block of training
WAYS = ("thread", "process")


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=5_000_000)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--train", action="store_true")
    arguments.add_argument("--ranks", action="store_true")
    arguments.add_argument("--batch-size", type=int, default=2048, help="a rank's")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        split = write(Path(folder), args.rows)
        if args.ranks:
            keep_result("loading_ranks", ranks(split, args.rounds, args.batch_size))
        elif args.train:
            keep_result("loading_train", train(split, args.rounds, args.batch_size))
        else:
            keep_result("loading", load(split, args.rounds))


def make_schema() -> Schema:
    """Criteo's columns."""
    numbers, ids = [f"I{i}" for i in range(1, 14)], range(1, 27)
    return Schema(
        dense=tuple(DenseFeature(name=n, side=Side.USER, source=n) for n in numbers),
        sparse=tuple(
            SparseFeature(
                name=f"C{i}",
                side=Side.AD if i in AD else Side.USER,
                source=f"C{i}",
                num_embeddings=SIZES[i - 1],
            )
            for i in ids
        ),
        labels=(Label(name="click"),),
    )


def write(folder: Path, rows: int) -> Split:
    """Seeded rows as `prepare` writes them; small ids are frequent, as by Zipf."""
    rng = np.random.default_rng(0)
    for part, first in enumerate(range(0, rows, FILE_ROWS)):
        n = min(FILE_ROWS, rows - first)
        columns = {f"I{i}": rng.standard_normal(n, np.float32) for i in range(1, 14)}
        for i, size in enumerate(SIZES, 1):
            columns[f"C{i}"] = (size ** rng.random(n) - 1).astype(np.int32)
        columns["click"] = (rng.random(n) < 0.25).astype(np.float32)
        columns[AD_ID] = (50_000 ** rng.random(n)).astype(np.int64)
        columns[LOG_Q] = np.log(rng.random(n) + 1e-6).astype(np.float32)
        write_rows(folder / f"part-{part:05d}.parquet", columns)
    return Split.open(folder)


def reader_of(split: Split, batch_size: int) -> Reader:
    """As `training/trainer.py` makes it: one for all epochs."""
    return Reader(split, batch_columns(make_schema()), batch_size, seed=0)


def batches(reader: Reader) -> Iterator[Batch]:
    """Epoch after epoch, as `training/trainer.py` reads them."""
    schema = make_schema()
    epochs = (rows for epoch in count() for rows in reader.epoch(epoch))
    return prefetch(collate(rows, schema) for rows in epochs)


def load(split: Split, rounds: int) -> dict[str, Any]:
    """One epoch, shuffled, in one process."""
    columns = list(batch_columns(make_schema()))

    def bare() -> None:
        for path in dict.fromkeys(path for path, *_ in split.groups):
            file = pq.ParquetFile(path, memory_map=True)
            for group in range(file.num_row_groups):
                file.read_row_group(group, columns=columns)

    def epoch_of(batch_size: int) -> Callable[[], None]:
        reader, schema = reader_of(split, batch_size), make_schema()
        return lambda: drain(prefetch(collate(r, schema) for r in reader.epoch()))

    ways = {"bare read": bare, "2048": epoch_of(2048), "8192": epoch_of(8192)}
    seconds = interleave(ways, rounds)
    return {
        "columns": len(columns),
        "rows": split.num_rows,
        "rows_per_second": {
            n: round(split.num_rows / median(s)) for n, s in seconds.items()
        },
        "best_rows_per_second": {
            n: round(split.num_rows / min(s)) for n, s in seconds.items()
        },
        "bare_read_times_faster": {
            n: round(ratio(seconds, n, "bare read"), 2) for n in ("2048", "8192")
        },
        "seconds": seconds,
    }


def ranks(split: Split, rounds: int, size: int) -> dict[str, Any]:
    """One epoch of several ranks at once, `size` rows a step each."""
    seconds: dict[str, list[float]] = {}
    decoded: dict[str, list[int]] = {}
    groups = [(1, False), (2, False), (2, True), (4, False), (4, True)]
    for _, (world, together), way in product(range(rounds), groups, WAYS):
        name = f"{world} by {way}" + (", together" if together else "")
        spent, decoded_bytes = epoch_of_ranks(split, size, world, way, together)
        seconds.setdefault(name, []).append(spent)
        if way == "thread":  # what another process decodes is not seen from here
            decoded[name] = decoded_bytes
    return {
        "rows": split.num_rows,
        "batch_size": size,
        "rows_per_second_of_all_ranks": {
            name: round(split.num_rows / median(spent))
            for name, spent in seconds.items()
        },
        "bytes_decoded_by_each_rank": decoded,
        "seconds": seconds,
    }


def epoch_of_ranks(
    split: Split, size: int, world: int, way: str, together: bool
) -> tuple[float, list[int]]:
    """Seconds from when all have a batch until all have read all; bytes by rank."""
    rows = reader_of(split, size * world).most_window_rows
    columns = batch_columns(make_schema())
    memory = nameless_memory(NodeWindows.nbytes(split, columns, rows, world))
    path = shared_path(memory) if together else None
    pipes = [Pipe() for _ in range(world)]
    workers = [
        get_context("spawn").Process(
            target=read_alone, args=(split, size, rank, world, way, path, pipe[1])
        )
        for rank, pipe in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    for ours, _ in pipes:
        ours.recv()  # it has read its first batch
    started = time.perf_counter()
    for ours, _ in pipes:
        ours.send("go")
    decoded = [ours.recv() for ours, _ in pipes]
    spent = time.perf_counter() - started
    for worker in workers:
        worker.join()
    return spent, decoded


def read_alone(
    split: Split,
    size: int,
    rank: int,
    world: int,
    way: str,
    path: str | None,
    pipe: Any,
) -> None:
    """One rank: tells of its first batch, and at the end how much it decoded."""
    schema = make_schema()
    reader = Reader(split, batch_columns(schema), size * world, rank, world, seed=0)
    if path is not None:
        file = Path(path).open("r+b", buffering=0)  # noqa: SIM115
        rows, pids = reader.most_window_rows, [os.getppid()] * world
        reader.decode_to(NodeWindows(split, reader.columns, rows, file, rank, pids))
    decoded = [0]
    put = RowBuffer.put

    def counted(buffer: RowBuffer, first: int, columns: Columns) -> None:
        decoded[0] += sum(values.nbytes for values in columns.values())
        put(buffer, first, columns)

    RowBuffer.put = counted  # type: ignore[method-assign, assignment]
    feed = Feed(reader, schema, 1, "raise")
    read = read_in_process if way == "process" else Feed.read
    batches = prefetch(read(feed, 0, heap, RepairCounts()))
    next(batches)
    pipe.send("reads")
    pipe.recv()
    drain(batches)
    pipe.send(decoded[0])


def train(split: Split, rounds: int, size: int) -> dict[str, Any]:
    """Steps of the towers on rows that are read against rows that lie in memory."""
    config = Config()
    with process_group("cpu") as process:
        model, optimizer, _ = build("retrieval", make_schema(), config, process)
        pipeline = TrainPipelineSparseDist(model, optimizer, process.device)
        read = batches(reader_of(split, size))
        # Each block has rows of its own: the same ones again are in cache, their
        # tables' rows too, and the difference would not be that of loading.
        ready = iter(list(islice(read, STEPS * (rounds + 1))))

        def steps_on(source: Iterator[Batch]) -> Callable[[], None]:
            return lambda: drain(progress(pipeline, islice(source, STEPS)))

        ways = {"read": steps_on(read), "in memory": steps_on(ready)}
        seconds = interleave(ways, rounds)
        pipeline.detach()
    return {
        "batch_size": size,
        "steps_a_block": STEPS,
        "samples_per_second": {
            n: round(STEPS * size / median(s)) for n, s in seconds.items()
        },
        "lost_to_loading": round(ratio(seconds, "read", "in memory") - 1, 4),
        "seconds": seconds,
    }


def progress(
    pipeline: TrainPipelineSparseDist[Batch, Any], source: Iterator[Batch]
) -> Iterator[Any]:
    """Steps until the source is empty."""
    while True:
        try:
            yield pipeline.progress(source)
        except StopIteration:
            return


def drain(items: Iterator[Any]) -> None:
    """Take all."""
    for _ in items:
        pass


if __name__ == "__main__":
    main()
