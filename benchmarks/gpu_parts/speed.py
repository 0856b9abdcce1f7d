"""Samples/s of the canonical towers: every way takes turns, blocks of steps each."""

import time
from argparse import Namespace
from statistics import median
from typing import Any

import torch

from gpu_parts.steppers import ready_batches, stepper, wait, ways_of
from torchrec_adrec.distributed.process import Process

BLOCK_SECONDS = 0.25  # of one way, a round
WARM = 8  # steps before anything is counted: compiling, capturing, allocating


def measure(process: Process, args: Namespace) -> dict[str, Any]:
    """By batch size."""
    figures: dict[str, Any] = {}
    for size in args.batch_size:
        figures[str(size)] = _at(size, process, args)
        rates = figures[str(size)]["samples_per_second"]
        print(size, rates, flush=True)  # a run that is cut short has told this much
    return figures


def _at(size: int, process: Process, args: Namespace) -> dict[str, Any]:
    batches, schema = ready_batches(size, process)
    steps, memory, warm, counts = {}, {}, {}, {}
    cuda = process.device.type == "cuda"
    for way in ways_of(process, args):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        step = stepper(way, size, batches, schema, process)
        for _ in range(WARM):
            step()
        wait(process)
        warm[way] = round(time.perf_counter() - started, 1)
        if cuda:
            memory[way] = (torch.cuda.max_memory_allocated() - before) >> 20
        counts[way] = max(int(BLOCK_SECONDS / _seconds(step, 3, process)), 3)
        steps[way] = step
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(args.rounds):
        for way, step in steps.items():
            seconds[way].append(_seconds(step, counts[way], process))
    rates = {way: round(size / median(s)) for way, s in seconds.items()}
    plain = {way: rate for way, rate in rates.items() if way.startswith("plain")}
    return {
        "samples_per_second": rates,
        "milliseconds": {w: round(median(s) * 1e3, 3) for w, s in seconds.items()},
        "times_plain_float32": _times(rates, plain.get("plain, float32")),
        "times_best_plain": _times(rates, max(plain.values(), default=None)),
        "peak_megabytes": memory,
        "seconds_to_start": warm,
        "seconds": seconds,
    }


def _times(rates: dict[str, int], under: int | None) -> dict[str, float]:
    if under is None:
        return {}
    return {
        way: round(rate / under, 2)
        for way, rate in rates.items()
        if way.startswith("ours")
    }


def _seconds(step: Any, count: int, process: Process) -> float:
    """Of one step, the mean over `count`."""
    wait(process)
    started = time.perf_counter()
    for _ in range(count):
        step()
    wait(process)
    return (time.perf_counter() - started) / count
