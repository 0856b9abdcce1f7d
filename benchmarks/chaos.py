"""Ranks die at random; what they trained must not show it.

    python benchmarks/chaos.py --runs 20

Every run is one `torchx run` of our component on two ranks, in which a random rank is
killed (SIGKILL) at a random moment of its training. It must end by itself, with the
loss of a run that was left alone, and its ledger must hold every row once. Then runs
that are killed or asked to stop (SIGTERM) and go on with another number of ranks; they
are compared with one that was left alone on as many ranks as they began on, because the
tables' first values are drawn where they live.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timing import keep_result

from torchrec_adrec.pipeline.pipeline import COMPONENTS
from torchrec_adrec.training.ledger_report import audit_stage

SMALL = (
    "data.adapter=synthetic",
    "data.synthetic={rows: 24100, ads: 600, users: 400}",
    "train.batch_size=128",
    "train.epochs=2",
    "train.checkpoint_every=20",
    "train.ledger=true",
    "retrieval.embedding_dim=8",
    "retrieval.hidden=[64]",
    "retrieval.output_dim=16",
    "retrieval.optimizer={tables_lr: .1, dense_lr: .003}",
)
# Of runs that change their ranks, and so the order in which sums are rounded. Dropout
# is drawn by rank. A ReLU whose input lies nearer to 0 than that rounding lets a row's
# gradient through on one number of ranks and not on the other: with one of 2e-8, 240
# steps later the loss of a batch was off by 2.5e-3, the test's by 2e-5.
SMOOTH = ("retrieval.dropout=0", "retrieval.hidden=[]", "retrieval.click_bias=false")
WHOLE = 1e-5  # largest difference from the run that was left alone
ATTEMPTS = 5  # to find an undisturbed run that makes its products in the same way
LATEST = 0.95  # of the training time: later there is nothing left to kill


@dataclass
class Job:
    """One launched training stage."""

    run: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, run: Path, ranks: int, restarts: int, *args: str) -> "Job":
        """Launch `adrec train retrieval` through our component."""
        torchx = str(Path(sys.executable).with_name("torchx"))
        command = [torchx, "run", "-s", "local_cwd", f"{COMPONENTS}:ddp"]
        command += ["-j", f"1x{ranks}", "--max_restarts", str(restarts), "--"]
        command += ["train", "retrieval", "--out", str(run), *args]
        log = (run / "log.txt").open("ab")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path}
        return cls(
            run, subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        )

    def reach(self, moment: float) -> None:
        """Wait until `moment` seconds of training have gone by."""
        while not list(self.run.glob("retrieval.partial-*/tensorboard/events*")):
            assert self.process.poll() is None, f"see {self.run}/log.txt"
            time.sleep(0.01)
        time.sleep(moment)

    def reach_step(self, step: int) -> None:
        """Wait until a checkpoint of this step or a later one is there."""
        while all(int(p.name[5:13]) < step for p in self._checkpoints()):
            assert self.process.poll() is None, f"see {self.run}/log.txt"
            time.sleep(0.01)

    def _checkpoints(self) -> list[Path]:
        return list(self.run.glob("retrieval.partial-*/checkpoints/step-????????"))

    def ranks(self) -> list[int]:
        """The process ids of the ranks, in the order of their start."""
        below = [pid for pid in _descendants(self.process.pid) if _is_rank(pid)]
        return sorted(below)


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from _descendants(child)


def _is_rank(pid: int) -> bool:
    return b"\0RANK=" in Path(f"/proc/{pid}/environ").read_bytes()


def precision_of(run: Path) -> str:
    """How a finished run made its products. Every run measures that for itself, so on a
    busy machine two of them may choose differently, and round differently.
    """
    states = sorted((run / "retrieval/checkpoints").glob("step-*/state.json"))
    return str(json.loads(states[-1].read_text())["precision"])


def judge(run: Path, alone: dict[str, Any] | None = None) -> dict[str, Any]:
    """Figures of a finished run, its ledger, and its distance from the one alone."""
    metrics = json.loads((run / "retrieval/metrics.json").read_text())
    epochs = audit_stage(run / "retrieval")
    judged = {
        "precision": precision_of(run),
        "loss": metrics["train"]["last_step_loss"],
        "test_log_loss": metrics["test"]["click"]["log_loss"],
        "dropped_rows_per_epoch": metrics["train"]["dropped_rows_per_epoch"],
        "resumed_at_step": metrics["train"]["resumed_at_step"],
        "restarts": metrics["train"]["restarts"],
        "ranks": metrics["world_size"],
        # A rank killed after the last checkpoint leaves no step: the rate is 0 then.
        "seconds": metrics["train"]["steps"]
        * 128
        / max(metrics["train"]["samples_per_second"], 1),
        "rows": [epoch.rows for epoch in epochs],
        "lost": sum(len(epoch.lost) for epoch in epochs),
        "doubled": sum(len(epoch.doubled) for epoch in epochs),
        "ledger_whole": all(epoch.is_whole for epoch in epochs),
    }
    if alone is not None:
        names = ("loss", "test_log_loss")
        judged["difference"] = max(abs(judged[n] - alone[n]) for n in names)
        judged["same"] = judged["ledger_whole"] and judged["difference"] <= WHOLE
    return judged


class Chaos:
    """Runs below one folder, all on the same prepared rows."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.random = out, random.Random(seed)
        self._undisturbed: dict[tuple[Any, ...], dict[str, Any]] = {}
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "torchrec_adrec", "prepare", *SMALL]
        subprocess.run([*command, "--out", str(out / "base")], check=True)

    def new(self, name: str) -> Path:
        """A run that is prepared."""
        shutil.copytree(self.out / "base", self.out / name)
        return self.out / name

    def alone(self, name: str, ranks: int, *args: str) -> dict[str, Any]:
        """A run that nobody disturbs."""
        run = self.new(name)
        assert Job.start(run, ranks, 0, *args).process.wait() == 0
        judged = judge(run)
        self._undisturbed[ranks, args, judged["precision"]] = judged
        return judged

    def judged(self, run: Path, ranks: int, *args: str) -> dict[str, Any]:
        """A run beside an undisturbed one that made its products in the same way."""
        precision = precision_of(run)
        for attempt in range(ATTEMPTS):
            if (ranks, args, precision) in self._undisturbed:
                break
            self.alone(f"{run.name}-alone-{attempt}", ranks, *args)
        return judge(run, self._undisturbed.get((ranks, args, precision)))

    def killed(self, number: int, alone: dict[str, Any]) -> dict[str, Any]:
        """One rank of two dies; nobody helps."""
        moment = self.random.uniform(0, LATEST * alone["seconds"])
        rank = self.random.randrange(2)
        while True:
            run = self.new(f"killed-{number}")
            job = Job.start(run, 2, 3)
            job.reach(moment)
            ranks = job.ranks()
            if len(ranks) == 2:
                break
            # Other work slowed the run that was left alone: this one was over by then.
            assert job.process.wait() == 0, f"see {run}/log.txt"
            shutil.rmtree(run)
            moment /= 2
        os.kill(ranks[rank], signal.SIGKILL)
        code = job.process.wait()
        killed = {"killed_rank": rank, "after_seconds": moment, "exit_code": code}
        return killed | self.judged(run, 2)

    def moved(self, number: int, ranks: tuple[int, int], how: str) -> dict[str, Any]:
        """Killed or asked to stop on some ranks, started again on others."""
        first, second = ranks
        run = self.new(f"moved-{number}")
        job = Job.start(run, first, 0, *SMOOTH)
        step = self.random.randrange(20, 240)
        job.reach_step(step)
        if how == "SIGKILL":
            os.kill(self.random.choice(job.ranks()), signal.SIGKILL)
        else:
            job.process.terminate()
        assert job.process.wait() != 0, "it ended before it was stopped"
        code = Job.start(run, second, 0, *SMOOTH).process.wait()
        moved = {"ranks_before": first, "stopped_by": how, "after_step": step}
        return moved | {"exit_code": code} | self.judged(run, first, *SMOOTH)


def main() -> None:
    """Run, compare, keep; exit code 1 if anything showed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, default=Path("runs/chaos"))
    args = arguments.parse_args()
    chaos = Chaos(args.out, args.seed)
    alone = chaos.alone("alone", 2)
    killed = list(_each(args.runs, lambda n: chaos.killed(n, alone)))
    still = {
        ranks: chaos.alone(f"alone-on-{ranks}", ranks, *SMOOTH) for ranks in (1, 2)
    }
    cases = [(r, how) for r in ((2, 1), (1, 4)) for how in ("SIGKILL", "SIGTERM")]
    moved = list(_each(len(cases), lambda n: chaos.moved(n, *cases[n])))
    runs = [*killed, *moved]
    summary = {
        "runs": len(runs),
        "ended_by_themselves": sum(run["exit_code"] == 0 for run in runs),
        "same": sum(run.get("same", False) for run in runs),
        "largest_difference": max(run.get("difference", math.inf) for run in runs),
        "rows_lost_or_doubled": sum(run["lost"] + run["doubled"] for run in runs),
    }
    figures = {"alone": alone, "alone_and_smooth": still}
    keep_result(
        "chaos", {"summary": summary, **figures, "killed": killed, "moved": moved}
    )
    sys.exit(summary["same"] != len(runs))


def _each(count: int, one: Callable[[int], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number in range(count):
        judged = one(number)
        print(json.dumps(judged), flush=True)
        yield judged


if __name__ == "__main__":
    main()
