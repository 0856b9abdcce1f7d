"""`adrec run` launches all stages on one machine, each as a user would launch it."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import ConfigError, StageError
from torchrec_adrec.evaluation.below import warn_below
from torchrec_adrec.evaluation.funnel.names import FOLDER, PICTURE
from torchrec_adrec.pipeline.display import VerboseDisplay, stage_lines
from torchrec_adrec.pipeline.funnel_table import print_funnel
from torchrec_adrec.pipeline.headline import headline
from torchrec_adrec.pipeline.report import (
    HTML_REPORT,
    REPORT,
    ads_table,
    metrics_of,
    summary_table,
    wide_console,
    write_report,
)
from torchrec_adrec.runs.run_lock import JOB, holder
from torchrec_adrec.runs.stage_folder import check_place
from torchrec_adrec.runs.stages import STAGES, Stage, is_done

COMPONENTS = Path(__file__).parents[1] / "launch/components.py"
UPDATE_EVERY_S = 0.2  # of the lines that show the stages
REQUESTS = 50  # example users that are asked for at the end

log = logging.getLogger(__name__)


def run_pipeline(config: Config, run: Path, job: str, verbose: bool = False) -> None:
    """Run every stage whose inputs have changed, then judge and show the result.

    Args:
        config: the settings of the run.
        run: its folder, held by this command.
        job: `1xRANKS`, as `1x2` for two ranks on this machine.
        verbose: show all that the stages print, in place of one line for each.

    Raises:
        ConfigError: more than one machine.
        StageError: a stage ended with an error.
    """
    if not re.fullmatch(r"1x[1-9][0-9]*", job):
        raise ConfigError(
            f"-j {job}: expected 1xRANKS; `adrec run` is for one machine, launch the"
            " stages by torchx for more"
        )
    if config.positives_alone:
        raise ConfigError(
            "data: with `negatives: 0` a ranker has nothing to learn, and `adrec"
            " run` ends with one; draw negatives, or run `adrec prepare`, `adrec train"
            " retrieval`, `adrec export` and `adrec index build`"
        )
    for stage in STAGES.values():
        if not is_done(stage, config, run):
            check_place(stage, run)  # before the work, not after it

    def figure_of(stage: str) -> str:
        return headline(stage, metrics_of(run, stage))

    details = nullcontext(VerboseDisplay())
    with details if verbose else stage_lines(run, figure_of) as display:
        _run_stages(config, run, job, display)
        served = _serve(config, run, display)
        metrics = {name: metrics_of(run, name) for name in STAGES}
        metrics["serve"] = served["speed"]
        if "funnel" in served:
            metrics["funnel"] = served["funnel"]
        warn_below(metrics)
    write_report(config.seed, metrics, run, served["ads"])
    console = wide_console()
    console.print(summary_table(metrics))
    console.print(ads_table(served["ads"], "Ten ads for the first example user"))
    paths = {"Report": run / HTML_REPORT, "Report as text": run / REPORT}
    if "funnel" in served:
        print_funnel(served["funnel"], console)
        paths = {"Picture": run / FOLDER / PICTURE} | paths
    for title, path in (paths | {"Log": display.log_path}).items():
        if path is not None:
            console.print(f"{title}: {path}", highlight=False, soft_wrap=True)


def _run_stages(config: Config, run: Path, job: str, display: VerboseDisplay) -> None:
    # Stages that all ranks run share a job: starting a launcher, Python and torchrec
    # takes longer than a small stage. Each of the others has a process of its own.
    for _, group in groupby(STAGES.values(), lambda s: s.ranks == "all" or s.name):
        pending = []
        for stage in group:
            if is_done(stage, config, run):
                log.info("%s: skipped, its inputs have not changed", stage.name)
                display.skip(stage.name)
            else:
                pending.append(stage)
        if pending:
            launch(pending, config, run, job, display)


def command(stages: Sequence[Stage], run: Path, job: str, restarts: int) -> list[str]:
    """Return the command line of some stages; that of one is what a user types.

    Args:
        stages: one, or several that all ranks run.
        run: the run's folder.
        job: `1xRANKS`.
        restarts: how often the launcher starts all ranks again after one died.
    """
    names = [stage.name for stage in stages]
    several = len(stages) > 1
    args = [*(("job", *names) if several else stages[0].command), "--out", str(run)]
    # One process that is not started again needs no launcher, which takes longer to
    # start than a small stage.
    is_alone = job == "1x1" and not restarts
    if stages[0].ranks != "all" or is_alone:
        return [sys.executable, "-m", "torchrec_adrec", *args]
    torchx = [str(Path(sys.executable).with_name("torchx")), "run", "-s", "local_cwd"]
    options = ["-j", job, "--max_restarts", str(restarts)]
    return [*torchx, f"{COMPONENTS}:ddp", *options, "--", *args]


def launch(
    stages: Sequence[Stage],
    config: Config,
    run: Path,
    job: str,
    display: VerboseDisplay | None = None,
) -> None:
    """Run stages in one job, on the ranks that `job` asks for or on one.

    All ranks start again after one died, `train.restarts` times. For the command that
    holds the run (`run_lock.py`).

    Args:
        stages: one, or several that all ranks run.
        config: the settings of the run.
        run: its folder.
        job: `1xRANKS`.
        display: shows how far they are; by default they print for themselves.

    Raises:
        StageError: one of them ended with an error.
    """
    display = display or VerboseDisplay()
    names = ", ".join(stage.name for stage in stages)
    args = command(stages, run, job, config.train.restarts)
    log.info("%s: %s", names, " ".join(args))
    ranks = int(job.rpartition("x")[2]) if stages[0].ranks == "all" else 1
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    # Ranks that each took all cores would wait for one another. What the user has set
    # stays.
    environment = {"OMP_NUM_THREADS": threads} | dict(os.environ)
    # By this name the stages know that the run's lock is held for them.
    environment |= {JOB: holder(run), **display.environment}
    display.launched(stages[0].name)
    began = time.monotonic()
    process = subprocess.Popen(
        args, env=environment, stdout=display.output, stderr=display.output
    )
    code, stop = _wait(process, display.update)
    if code:
        display.fail()
        # The job says only that it failed: the stage is the first that is not whole.
        failed = next((s for s in stages if not is_done(s, config, run)), stages[-1])
        details = f", {display.log_path} has all of them" if display.log_path else ""
        raise StageError(
            f"stage {failed.name} failed with exit code {code}; its last lines above"
            f" say why{details}. The same command goes on from what is finished",
            stop,
        )
    for stage in stages:
        display.finish(stage.name)
    log.info("%s: finished in %.0f s", names, time.monotonic() - began)


def _wait(
    job: subprocess.Popen[bytes], update: Callable[[], None] = lambda: None
) -> tuple[int, int]:
    """Wait for a job, calling `update` meanwhile.

    A stage that is stopped saves first, so this process must outlive the signal and
    wait. SIGTERM comes to us alone, so it is passed on. SIGINT, from Ctrl-C, comes from
    the terminal to every process of the group: the stage has it already, and a second
    one would end it before it has saved.

    Returns:
        Its exit code, and the last signal that came meanwhile, 0 if there was none.
    """
    stop = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        stop = number
        if number == signal.SIGTERM:
            job.terminate()

    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        while True:
            try:
                code = job.wait(UPDATE_EVERY_S)
            except subprocess.TimeoutExpired:
                update()
            else:
                update()  # what it sent at its end
                return code, stop
    except BaseException:
        # An error of our own may not leave a job behind that still holds the run.
        job.terminate()
        job.wait()
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _serve(config: Config, run: Path, display: VerboseDisplay) -> dict[str, Any]:
    """Open the run as it serves; ask for the example users, then judge the funnel."""
    from torchrec_adrec.evaluation.funnel.report import evaluate_funnel
    from torchrec_adrec.serve.recommender import Recommender

    display.launched("serve")
    # What was just made is reported, also where the certificate is of the run before.
    recommender = Recommender.load(run, is_certified=False)
    examples = _serve_examples(recommender, run)
    display.finish("serve", headline("serve", examples["speed"]))
    if recommender.changes:
        log.warning("the funnel is not judged: ads were updated since the export")
        return examples
    display.launched("funnel")
    funnel = evaluate_funnel(run, recommender, config.evaluation, config.seed)
    display.finish("funnel", headline("funnel", funnel))
    return examples | {"funnel": funnel}


def _serve_examples(recommender: Any, run: Path) -> dict[str, Any]:
    """Ask for some example users once; milliseconds are medians over them."""
    users = json.loads((run / "data/example_users.json").read_text())[:REQUESTS]
    recommender.recommend(users[0])  # the first call pays for allocations
    answers = [recommender.recommend(user) for user in users]
    parts = answers[0].milliseconds
    speed = {
        "requests": len(users),
        "candidates": answers[0].candidates,
        "milliseconds": {
            name: median(answer.milliseconds[name] for answer in answers)
            for name in parts
        },
    }
    return {"ads": answers[0].ads, "speed": speed}
