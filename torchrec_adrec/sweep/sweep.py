"""`adrec sweep`: all runs of a file, and their table.

DIR/
  runs/VARIANT/seed-SEED/   a run each, as `adrec run` makes it
  study.db                  of a search: what Optuna has tried
  sweep.json, sweep.md, sweep.png   the table, written again after every variant
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runs.run_lock import Job, hold_for_stages
from torchrec_adrec.runs.stage_folder import make_run
from torchrec_adrec.runtime.disk import disk_errors
from torchrec_adrec.sweep.outcome import Outcome
from torchrec_adrec.sweep.plan import Plan
from torchrec_adrec.sweep.report import Report, report_of, write_report
from torchrec_adrec.sweep.runner import Runner

Say = Callable[[str], None]


def run_sweep(
    plan: Plan, out: Path, job: str, trials: int, all_test: bool, say: Say
) -> Report:
    """Make all runs of a sweep that are not there yet; return their table.

    Args:
        plan: what `read_sweep` returned.
        out: folder of the sweep.
        job: `1xRANKS`, for each run.
        trials: how many variants a search draws; 0 where there is none.
        all_test: whether the test figures of all variants are shown.
        say: shows a line.

    Raises:
        ConfigError: another sweep is at work in the folder; `trials` does not fit the
            file; or Optuna is not installed.
        StageError: this command was asked to stop.
    """
    if bool(plan.sweep.search) != bool(trials):
        raise ConfigError(
            "`search` needs --trials N, and only `search`: the file has"
            f" {'one' if plan.sweep.search else 'none'}"
        )
    variants = trials or len(plan.variants)
    runner = Runner(plan, out, job, say, variants * len(plan.sweep.seeds))
    report: Report = {}

    def write(outcomes: Sequence[Outcome]) -> None:
        nonlocal report
        report = report_of(plan, outcomes, runner, all_test)
        write_report(report, out)

    make_run(out)
    with disk_errors(out), hold_for_stages(out, Job.new()):
        if trials:
            if find_spec("optuna") is None:
                raise ConfigError(
                    "a search needs Optuna: pip install 'torchrec-adrec[sweep]'"
                )
            from torchrec_adrec.sweep.search import search

            search(plan, runner, out, trials, write)
        else:
            _run_all(plan, runner, write)
    return report


def _run_all(
    plan: Plan, runner: Runner, write: Callable[[Sequence[Outcome]], None]
) -> None:
    outcomes: list[Outcome] = []
    for variant in plan.variants:
        outcomes.append(runner.run_variant(variant))
        # What is known by now can be read while the rest goes on.
        write(outcomes)
