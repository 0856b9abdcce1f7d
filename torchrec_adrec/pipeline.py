"""All stages of a run on one machine, each launched as a user would launch it."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from torchrec_adrec.config import Config
from torchrec_adrec.errors import ConfigError, StageError
from torchrec_adrec.evaluation.below import warn_below
from torchrec_adrec.report import ads_table, summary_table, wide_console, write_report
from torchrec_adrec.stages import STAGES, Stage, is_done

COMPONENTS = Path(__file__).parent / "launch/components.py"

log = logging.getLogger(__name__)


def run_pipeline(config: Config, run: Path, job: str) -> None:
    """Run every stage whose inputs have changed, then judge and show the result.

    Args:
        job: `NODESxRANKS` as torchx takes it, `1x2` for two ranks here.

    Raises:
        ConfigError: more than one machine.
        StageError: a stage ended with an error.
    """
    if not re.fullmatch(r"1x[1-9][0-9]*", job):
        raise ConfigError(
            f"-j {job}: expected 1xRANKS; `adrec run` is for one machine, launch the"
            " stages by torchx for more"
        )
    for stage in STAGES.values():
        if is_done(stage, config, run):
            log.info("%s: skipped, its inputs have not changed", stage.name)
            continue
        started = time.monotonic()
        launch(stage, run, job, config.train.restarts)
        log.info("%s: finished in %.0f s", stage.name, time.monotonic() - started)
    served = _serve_examples(run)
    metrics = {name: _metrics(run / name) for name in STAGES} | {
        "serve": served["speed"]
    }
    warn_below(metrics)
    write_report(config, metrics, run)
    console = wide_console()
    console.print(summary_table(metrics))
    console.print(ads_table(served["ads"], "Ten ads for the first example user"))
    console.print(f"Everything of this run: {run}/report.md")


def command(stage: Stage, run: Path, job: str, restarts: int) -> list[str]:
    """The command line of a stage, the same one that a user types."""
    words = [*stage.command, "--out", str(run)]
    if stage.ranks != "all":
        return [sys.executable, "-m", "torchrec_adrec", *words]
    torchx = [str(Path(sys.executable).with_name("torchx")), "run", "-s", "local_cwd"]
    options = ["-j", job, "--max_restarts", str(restarts)]
    return [*torchx, f"{COMPONENTS}:ddp", *options, "--", *words]


def launch(stage: Stage, run: Path, job: str, restarts: int = 0) -> None:
    """Run a stage on the ranks that `job` asks for, or on one if it takes only one.

    Args:
        restarts: times that all ranks are started again after one died.

    Raises:
        StageError: it ended with an error.
    """
    words = command(stage, run, job, restarts)
    log.info("%s: %s", stage.name, " ".join(words))
    # The launcher calls `torchrun` by name: it must be the one of this environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    ranks = int(job.rpartition("x")[2]) if stage.ranks == "all" else 1
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    environment = {"OMP_NUM_THREADS": threads} | dict(os.environ) | {"PATH": path}
    code = _wait(subprocess.Popen(words, env=environment))
    if code:
        raise StageError(
            f"stage {stage.name} failed with exit code {code}; its last lines above say"
            " why. The same command goes on from what is finished"
        )


def _wait(job: subprocess.Popen[bytes]) -> int:
    """Wait for a stage. SIGTERM is passed on, so that it saves first; SIGINT reaches it
    from the terminal as it does us.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            job.terminate()

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        return job.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metrics(folder: Path) -> dict[str, Any]:
    name = "report.json" if folder.name == "data" else "metrics.json"
    return dict(json.loads((folder / name).read_text()))


def _serve_examples(run: Path) -> dict[str, Any]:
    """Ask for every example user once; milliseconds as medians over them."""
    from torchrec_adrec.serve.recommender import Recommender

    recommender = Recommender.load(run)
    users = json.loads((run / "data/example_users.json").read_text())
    recommender.recommend(users[0])  # the first call pays for allocations
    answers = [recommender.recommend(user) for user in users]
    stages = answers[0].milliseconds
    speed = {name: median(a.milliseconds[name] for a in answers) for name in stages}
    return {
        "ads": answers[0].ads,
        "speed": {
            "requests": len(users),
            "candidates": answers[0].candidates,
            "milliseconds": speed,
        },
    }
