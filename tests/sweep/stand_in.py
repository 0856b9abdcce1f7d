"""Stages that take no time: the figures follow from the settings and the seed.

As a program it makes a sweep: python stand_in.py FILE OUT TRIALS [KILL_AFTER], and dies
of SIGKILL in the middle of the stage after so many.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import StageError
from torchrec_adrec.pipeline.display import VerboseDisplay
from torchrec_adrec.runs.stage_folder import stage_workspace
from torchrec_adrec.runs.stages import Stage
from torchrec_adrec.runtime.status import STATUS_FILE, Status, send
from torchrec_adrec.sweep.plan import read_sweep
from torchrec_adrec.sweep.sweep import run_sweep

REPOSITORY = Path(__file__).parents[2]
BEST_LR = 0.01  # of the stand-in's ranker
CRASH = 3  # layers with which its ranker fails
STEPS = 4


def auc(config: Config) -> float:
    """The validation AUC of these settings, highest at `BEST_LR`."""
    distance = abs(config.ranking.optimizer.dense_lr - BEST_LR)
    return 0.8 - distance - 0.001 * config.seed - 0.01 * config.ranking.dropout


class StandIn:
    """Takes the place of `launch`.

    Attributes:
        launched: (stage, seed, folder of the run) of everything that was made.
        kill_after: stages after which the process kills itself in the next one.
    """

    def __init__(self, kill_after: int | None = None) -> None:
        self.launched: list[tuple[str, int, str]] = []
        self.kill_after = kill_after

    def __call__(
        self,
        stages: Sequence[Stage],
        config: Config,
        run: Path,
        job: str,
        display: VerboseDisplay,
    ) -> None:
        os.environ |= display.environment
        for stage in stages:
            display.launched(stage.name)
            try:
                self.make(stage, config, run, display)
            finally:
                os.environ.pop(STATUS_FILE, None)
            display.finish(stage.name)

    def make(
        self, stage: Stage, config: Config, run: Path, display: VerboseDisplay
    ) -> None:
        with stage_workspace(stage, config, run) as folder:
            (folder / "half.txt").touch()
            if len(self.launched) == self.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if stage.name == "ranking":
                self.train(config, display)
            click = {"auc": auc(config), "rows": 100, "label_rate": 0.3}
            metrics = {"valid": {"click": click}, "test": {"click": {"auc": 0.7}}}
            (folder / "metrics.json").write_text(json.dumps(metrics))
        self.launched.append((stage.name, config.seed, str(run)))

    def train(self, config: Config, display: VerboseDisplay) -> None:
        if config.ranking.layers == CRASH:
            send(Status("error", "a traceback\nValueError: three layers"))
            display.fail()
            raise StageError("stage ranking failed with exit code 1")
        for step in range(1, STEPS + 1):
            figures = json.dumps({"click": {"auc": auc(config) * step / STEPS}})
            send(Status("figures", figures, step, STEPS, "ranking"))
            display.update()


@contextmanager
def standing_in(kill_after: int | None = None) -> Iterator[StandIn]:
    """Replace what a sweep launches."""
    launch = StandIn(kill_after)
    with patch("torchrec_adrec.sweep.runner.launch", launch):
        yield launch


def sweep(file: Path, out: Path, trials: int = 0, all_test: bool = False) -> Any:
    return run_sweep(read_sweep(file), out, "1x1", trials, all_test, print)


def run_alone(file: Path, out: Path, trials: int, *kill: int) -> int:
    """Sweep in a process of its own; return its exit code."""
    args = [sys.executable, __file__, file, out, trials, *kill]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    return subprocess.run([*map(str, args)], env=environment).returncode


def tables(out: Path) -> list[str]:
    return [(out / name).read_text() for name in ("sweep.json", "sweep.md")]


if __name__ == "__main__":
    file, out, trials, *kill = sys.argv[1:]
    with standing_in(int(kill[0]) if kill else None):
        plan = read_sweep(Path(file))
        run_sweep(plan, Path(out), "1x1", int(trials), False, print)
