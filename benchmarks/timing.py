"""Interleaved timing: A B A B ..., medians and the ratio of each pair."""

import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
LONG = ("seconds", "runs")


def interleave(
    ways: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every call, all ways once a round, after one round not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    """Median over rounds of time(over) / time(under): how much faster `under` is."""
    pairs = zip(seconds[over], seconds[under], strict=True)
    return median(a / b for a, b in pairs)


def keep_result(name: str, figures: dict[str, Any]) -> None:
    """Write the raw figures with the machine they come from, and print them.

    Long lists, `seconds` and `runs`, are not printed.
    """
    machine = {
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        **{name: version(name) for name in ("torch", "torchrec")},
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine, **figures}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    shown = {key: value for key, value in figures.items() if key not in LONG}
    print(json.dumps(shown, indent=1))
