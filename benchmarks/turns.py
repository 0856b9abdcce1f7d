"""Processes that take turns: one trains a block of steps, the others are stopped."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from torchrec_adrec.distributed.process import Process
from torchrec_adrec.runtime.threads import STAY_AWAKE


class Worker:
    """A process that trains a block when it is told to.

    Args:
        script: that it runs.
        args: of the script's `--worker`; the first is the way.
        ranks: processes of it.
        checkout: whose code it imports; None: that of this process.
    """

    def __init__(
        self,
        script: str,
        args: list[str],
        ranks: int = 1,
        checkout: Path | None = None,
    ) -> None:
        command = [sys.executable]
        if ranks > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(ranks)]
        self.process = subprocess.Popen(
            [*command, script, "--worker", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | (STAY_AWAKE if is_awake(args[0]) else {})
            | ({} if checkout is None else {"PYTHONPATH": str(checkout)}),
            start_new_session=True,
        )
        self._read()
        self._send(signal.SIGSTOP)

    def _read(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("BLOCK "):
                return line.removeprefix("BLOCK ")
        raise RuntimeError(f"a worker ended with {self.process.wait()}")

    def _tell(self, word: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._read()

    def _send(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def block(self) -> float:
        """Seconds of one step, the mean of a block's. Stopped before and after: threads
        that spin would slow the others down. (Of several ranks the launcher alone is
        stopped; they have one thread each, which sleeps.)
        """
        self._send(signal.SIGCONT)
        spent = float(self._tell("go"))
        self._send(signal.SIGSTOP)
        return spent

    def profile(self) -> dict[str, float]:
        """See `profiled`."""
        self._send(signal.SIGCONT)
        profiled: dict[str, float] = json.loads(self._tell("profile"))
        self._send(signal.SIGSTOP)
        return profiled

    def end(self) -> int:
        """Peak memory in megabytes."""
        self._send(signal.SIGCONT)
        peak = int(self._tell("end"))
        self.process.wait()
        return peak


def is_awake(way: str) -> bool:
    """Whether its process is set up as `adrec train` sets up its own."""
    return way.startswith("ours") or way.endswith("awake")


def commands(process: Process) -> Iterator[str]:
    """What the first rank is told, on all."""
    answer(process, 0)
    while True:
        word = [sys.stdin.readline().strip() if process.is_first else ""]
        dist.broadcast_object_list(word)
        yield word[0]


def answer(process: Process, figure: float | str) -> None:
    """Tell the first rank's figure."""
    if process.is_first:
        print("BLOCK", figure, flush=True)


def profiled(step: Callable[[], Any], count: int) -> dict[str, float]:
    """What costs most of a step on this rank: milliseconds by operation, waits too."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(count):
            step()
    spent: dict[str, float] = {}
    for event in profiled.key_averages():
        name = event.key.rstrip(" #0123456789")  # of a numbered step
        spent[name] = spent.get(name, 0) + event.self_cpu_time_total / 1000 / count
    top = sorted(spent, key=lambda name: -spent[name])[:14]
    return {name: round(spent[name], 2) for name in top}
