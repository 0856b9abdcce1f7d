"""Vectors as towers give them, for the benchmarks of the index."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchrec_adrec.arrays import Float32s, Float64s

CENTRES, NOISE = 4096, 0.7


def falling_clusters(rows: int, dim: int, seed: int) -> Float32s:
    """Draw vectors of length 1 near 4,096 centres, (rows, dim).

    The n-th direction is n times as short as the first, and they are rotated: of 256
    directions 64 keep 98.8% of the squared lengths.
    """
    rng = np.random.default_rng(0)
    scale = (1 / np.arange(1, dim + 1)).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32)
    centres: Float32s = rng.normal(size=(CENTRES, dim)).astype(np.float32)
    rng = np.random.default_rng(seed)
    vectors = np.empty((rows, dim), dtype=np.float32)
    for first in range(0, rows, 65_536):
        size = min(65_536, rows - first)
        noise = rng.standard_normal((size, dim), dtype=np.float32)
        some = centres[rng.integers(CENTRES, size=size)] + NOISE * noise
        some = np.asarray((some * scale) @ rotation, dtype=np.float32)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
        vectors[first : first + size] = some
    return vectors


def interleaved_microseconds(
    ways: dict[str, Callable[[int], Any]], count: int, rounds: int = 3
) -> dict[str, dict[str, float]]:
    """Time single queries, every way in turn, on one thread.

    Of each query the fastest of some rounds counts, by the clock and by the processor
    time, which other work on the machine disturbs less.

    Args:
        ways: name -> a search for the query of a number.
        count: number of queries.
        rounds: how often each is searched.
    """
    clock = {name: np.full(count, np.inf) for name in ways}
    busy = {name: np.full(count, np.inf) for name in ways}
    for _ in range(rounds):
        for number in range(count):
            for name, way in ways.items():
                began, busy_before = time.perf_counter(), time.process_time()
                way(number)
                seconds = time.process_time() - busy_before
                busy[name][number] = min(busy[name][number], seconds)
                seconds = time.perf_counter() - began
                clock[name][number] = min(clock[name][number], seconds)
    return {
        name: {
            "p10": _percentile(clock[name], 10),
            "p50": _percentile(clock[name], 50),
            "p99": _percentile(clock[name], 99),
            "processor_p50": _percentile(busy[name], 50),
        }
        for name in ways
    }


def _percentile(seconds: Float64s, level: float) -> float:
    return round(float(np.percentile(seconds, level)) * 1e6, 1)


def print_table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Print some columns of rows, aligned."""
    lines = [list(names), *([str(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in cells), flush=True)
