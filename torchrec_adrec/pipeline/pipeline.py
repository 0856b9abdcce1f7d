"""All stages of a run on one machine, each launched as a user would launch it."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import ConfigError, StageError
from torchrec_adrec.evaluation.below import warn_below
from torchrec_adrec.pipeline.report import (
    ads_table,
    summary_table,
    wide_console,
    write_report,
)
from torchrec_adrec.runs.run_lock import JOB, holder
from torchrec_adrec.runs.stage_folder import check_place
from torchrec_adrec.runs.stages import STAGES, Stage, is_done

COMPONENTS = Path(__file__).parents[1] / "launch/components.py"

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
        if not is_done(stage, config, run):
            check_place(stage, run)  # before the work, not after it
    # Stages that all ranks run share a job; each of the others has one of its own.
    for _, group in groupby(STAGES.values(), lambda s: s.ranks == "all" or s.name):
        todo = []
        for stage in group:
            if is_done(stage, config, run):
                log.info("%s: skipped, its inputs have not changed", stage.name)
            else:
                todo.append(stage)
        if todo:
            launch(todo, config, run, job)
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


def command(stages: Sequence[Stage], run: Path, job: str, restarts: int) -> list[str]:
    """The command line of some stages; that of one is what a user types."""
    names = [stage.name for stage in stages]
    several = len(stages) > 1
    words = [*(("job", *names) if several else stages[0].command), "--out", str(run)]
    if stages[0].ranks != "all":
        return [sys.executable, "-m", "torchrec_adrec", *words]
    torchx = [str(Path(sys.executable).with_name("torchx")), "run", "-s", "local_cwd"]
    options = ["-j", job, "--max_restarts", str(restarts)]
    return [*torchx, f"{COMPONENTS}:ddp", *options, "--", *words]


def launch(stages: Sequence[Stage], config: Config, run: Path, job: str) -> None:
    """Run stages in one job, on the ranks that `job` asks for or on one.

    All ranks start again after one died, `train.restarts` times. For the command that
    holds the run (`run_lock.py`).

    Args:
        stages: one, or several that all ranks run.

    Raises:
        StageError: one of them ended with an error.
    """
    names = ", ".join(stage.name for stage in stages)
    words = command(stages, run, job, config.train.restarts)
    log.info("%s: %s", names, " ".join(words))
    ranks = int(job.rpartition("x")[2]) if stages[0].ranks == "all" else 1
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    environment = {"OMP_NUM_THREADS": threads} | dict(os.environ)
    began = time.monotonic()
    code = _wait(subprocess.Popen(words, env=environment | {JOB: holder(run)}))
    if code:
        failed = next((s for s in stages if not is_done(s, config, run)), stages[-1])
        raise StageError(
            f"stage {failed.name} failed with exit code {code}; its last lines above"
            " say why. The same command goes on from what is finished"
        )
    log.info("%s: finished in %.0f s", names, time.monotonic() - began)


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
