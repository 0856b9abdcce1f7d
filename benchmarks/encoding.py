"""Encoding a million ads: `adrec export` to files beside the bare tower, in turns.

    adrec prepare --config configs/million_ads.yaml --out RUN \\
        "data.synthetic={rows: 1000000, ads: 600000, users: 20000}"
    adrec train retrieval --out RUN
    python benchmarks/encoding.py RUN

The ads of a finished run are repeated under ids of their own, as many as are asked for.
Export reads columns, encodes, compares the lengths and writes files that are flushed;
the bare tower encodes batches that lie in memory, and drops the vectors. Both compute
with one thread, then both with one on every core; export writes in threads besides. The
table tells the milliseconds of the processor by part, for 4,096 ads.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from timing import keep_result, ratio

from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.evaluation.encode import check_vectors
from torchrec_adrec.export.encode import encode_parts
from torchrec_adrec.export.parts import Parts, rows_of_a_part, write_vectors
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runtime.memory import keep_freed_memory
from torchrec_adrec.schema import AD_ID, Schema, Side
from torchrec_adrec.tasks.sharded import restore_whole

BATCH = 4096


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run with trained towers")
    parser.add_argument("--ads", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()  # as every command does
    schema = Schema.load(args.run / "data/schema.json")
    ads = _repeated(load_catalog(args.run / "data"), args.ads)
    task, _ = restore_whole("retrieval", args.run, schema)
    similarity = stage_settings(args.run / "retrieval").retrieval.similarity
    measured = Encoding(schema, ads, task.model.ad_tower, similarity)
    by_threads = {}
    with process_group("cpu") as process, torch.no_grad():
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            torch.set_num_threads(threads)
            by_threads[str(threads)] = measured.speed(process, args.rounds)
        torch.set_num_threads(1)
        parts = measured.milliseconds()
    figures = {"ads": len(ads), "by_threads": by_threads, "milliseconds": parts}
    keep_result("encoding", figures)


class Encoding:
    """Export and the bare tower, of the same ads.

    Args:
        schema: of the ads.
        ads: encoded columns.
        tower: of the ads.
        similarity: of the towers.
    """

    def __init__(
        self, schema: Schema, ads: pl.DataFrame, tower: Any, similarity: str
    ) -> None:
        self.schema, self.ads, self.tower = schema, ads, tower
        self.similarity = similarity

    def speed(self, process: Process, rounds: int) -> dict[str, Any]:
        """Time both in turns."""
        loaded = [self._input(rows) for rows in self.ads.iter_slices(BATCH)]

        def export(folder: Path) -> None:
            ads, schema = self.ads, self.schema
            parts = Parts(folder, ads[AD_ID].to_numpy(), "fp32", {})
            encode_parts(
                self.tower, ads, schema, self.similarity, BATCH, parts, process
            )

        def bare(_: Path) -> None:
            for batch in loaded:
                self.tower(batch)

        ways = {"export": export, "bare tower": bare}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        busy: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, way in ways.items():
                # Files are removed after the clock was read, and before the next turn.
                with tempfile.TemporaryDirectory() as folder:
                    began = time.perf_counter(), time.process_time()
                    way(Path(folder))
                    ended = time.perf_counter(), time.process_time()
                if number:
                    seconds[name].append(ended[0] - began[0])
                    busy[name].append(ended[1] - began[1])
        return {
            "ads_per_second": {
                name: round(len(self.ads) / median(s)) for name, s in seconds.items()
            },
            "export_over_bare_tower": round(ratio(seconds, "bare tower", "export"), 3),
            "by_processor_time": round(ratio(busy, "bare tower", "export"), 3),
            "seconds": seconds,
        }

    def milliseconds(self, blocks: int = 40) -> dict[str, float]:
        """Medians of the processor's time for a batch, by part, on one thread."""
        spent: dict[str, list[float]] = defaultdict(list)
        written = rows_of_a_part(len(self.ads))
        batches = [*self.ads.head(BATCH * blocks).iter_slices(BATCH)]
        vectors = np.concatenate([self.tower(self._input(b)).numpy() for b in batches])
        with tempfile.TemporaryDirectory() as folder:
            for number, rows in enumerate(batches):
                began = time.thread_time()
                batch = self._input(rows)
                collated = time.thread_time()
                self.tower(batch)
                encoded = time.thread_time()
                part = vectors[: min(written, len(vectors))]
                scale = 1e3 * BATCH / len(part)
                check_vectors(part, Side.AD, self.similarity)
                checked = time.thread_time()
                path = Path(folder) / f"{number}.parquet"
                write_vectors(path, np.arange(len(part)), part)
                spent["columns to batch"].append((collated - began) * 1e3)
                spent["tower"].append((encoded - collated) * 1e3)
                spent["lengths"].append((checked - encoded) * scale)
                spent["write and flush"].append((time.thread_time() - checked) * scale)
                path.unlink()
        return {name: round(median(values), 2) for name, values in spent.items()}

    def _input(self, rows: pl.DataFrame) -> Any:
        names = self.schema.columns_of(Side.AD)
        columns = {name: rows[name].to_numpy() for name in names}
        return tower_input(columns, self.schema, Side.AD)


def _repeated(catalog: pl.DataFrame, count: int) -> pl.DataFrame:
    """Draw ads of a catalog, (count,), in an order that no memory cache foresees."""
    rows = np.random.default_rng(0).integers(len(catalog), size=count)
    return catalog[rows].with_columns(pl.Series(AD_ID, np.arange(count)))


if __name__ == "__main__":
    main()
