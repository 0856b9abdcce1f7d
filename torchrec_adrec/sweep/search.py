"""A search for the best settings with Optuna: TPE, with median pruning.

The study lies in a SQLite file, so a search that was killed goes on where it was: the
trial that was under way is begun again with its settings, and its run goes on from its
last checkpoint. Every trial draws with a seed of its own, so that it tries what an
uninterrupted search would have tried.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from torchrec_adrec.config.run import load_config
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runtime.status import Status
from torchrec_adrec.sweep.metric import Metric
from torchrec_adrec.sweep.outcome import Outcome
from torchrec_adrec.sweep.plan import Plan, Range, Variant
from torchrec_adrec.sweep.runner import Runner

STUDY, NAME = "study.db", "sweep"
OUTCOME, MADE_OF, REPORTED = "outcome", "made_of", "reported"  # attributes of the study
# Places of a trial's figures in its study: 1,000 for each seed, of which the last is
# the mean over the seeds so far, and the others are shares of the training.
OF_SEED, MEAN = 1_000, 999
STARTUP_TRIALS = 5  # before one is compared with the median of the others
WARM_UP = 300  # no trial ends in the first 30% of its first training


class PrunedError(Exception):
    """Ends a trial whose figures are below the median of the others."""


def search(
    plan: Plan,
    runner: Runner,
    out: Path,
    trials: int,
    write: Callable[[Sequence[Outcome]], None],
) -> None:
    """Run trials until there are so many, those of an earlier call included.

    Args:
        plan: of the sweep.
        runner: makes the runs.
        out: folder of the sweep.
        trials: how many there are in the end.
        write: takes all outcomes after every trial.

    Raises:
        ConfigError: the folder holds a search of something else.
    """
    study = _open(plan, out)
    _take_up(study, plan)
    write(_outcomes(study))
    while len(outcomes := _outcomes(study)) < trials:
        study.sampler = TPESampler(seed=plan.sweep.seeds[0] + len(outcomes))
        trial = study.ask()
        settings = {k: _draw(trial, k, space) for k, space in plan.sweep.search.items()}
        outcome = Outcome(Variant(f"trial {len(outcomes)}", settings))
        runner.say(f"{outcome.variant.name}: {_text(settings)}")
        _run(trial, outcome, plan, runner)
        trial.set_user_attr(OUTCOME, outcome.to_json())
        _tell(study, trial, outcome, plan.metric)
        write(_outcomes(study))


def _open(plan: Plan, out: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{(out / STUDY).resolve()}",
        study_name=NAME,
        pruner=MedianPruner(STARTUP_TRIALS, WARM_UP),
        direction="maximize" if plan.metric.is_higher_better else "minimize",
        load_if_exists=True,
    )
    _check_same(study, plan, out)
    return study


def _check_same(study: optuna.Study, plan: Plan, out: Path) -> None:
    """Refuse to compare figures of other seeds or settings with those that are there.

    Raises:
        ConfigError: names what differs.
    """
    base = load_config(plan.config, plan.common)
    made_of = plan.sweep.model_dump(mode="json") | base.model_dump(mode="json")
    before = study.user_attrs.get(MADE_OF, made_of)
    changed = [key for key in made_of if before.get(key) != made_of[key]]
    if changed:
        raise ConfigError(
            f"{out} holds a search of another file or other settings"
            f" ({', '.join(changed)} differ): its figures do not compare with new ones;"
            " choose another --out"
        )
    study.set_user_attr(MADE_OF, made_of)


def _take_up(study: optuna.Study, plan: Plan) -> None:
    """Queue the trial that was under way when the search was killed."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if OUTCOME in trial.user_attrs:  # killed between its end and its record
            _tell(study, trial.number, _read(trial), plan.metric)
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        reported = {str(k): v for k, v in trial.intermediate_values.items()}
        # A trial that was not drawn whole is drawn again, by the same seed.
        if set(trial.params) == set(plan.sweep.search):
            study.enqueue_trial(trial.params, {REPORTED: reported})


def _outcomes(study: optuna.Study) -> list[Outcome]:
    """The outcomes of all trials that ended by themselves, in their order."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    trials = study.get_trials(states=ended)
    return [_read(trial) for trial in trials if OUTCOME in trial.user_attrs]


def _read(trial: FrozenTrial) -> Outcome:
    return Outcome.from_json(trial.user_attrs[OUTCOME])


def _draw(trial: Trial, key: str, space: Range | list[Any]) -> Any:
    if not isinstance(space, Range):
        # As text: Optuna takes no lists as values.
        texts = [json.dumps(value) for value in space]
        return json.loads(trial.suggest_categorical(key, texts))
    draw = trial.suggest_int if space.is_whole else trial.suggest_float
    return draw(key, space.low, space.high, log=space.log)


def _text(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
        for k, v in settings.items()
    )


def _run(trial: Trial, outcome: Outcome, plan: Plan, runner: Runner) -> None:
    metric, seeds = plan.metric, plan.sweep.seeds
    # Of the trial that was killed, whose training goes on from a checkpoint.
    reported = {int(k): v for k, v in trial.user_attrs.get(REPORTED, {}).items()}
    for place, value in reported.items():
        trial.report(value, place)

    def report(value: float, place: int) -> None:
        if place not in reported:
            trial.report(value, place)
        if trial.should_prune():
            raise PrunedError

    def take(status: Status) -> None:
        if status.note == metric.stage and status.total:
            figure = json.loads(status.text)[metric.label][metric.figure]
            share = (MEAN - 1) * status.done // status.total
            report(figure, OF_SEED * index + share)

    try:
        for index, seed in enumerate(seeds):
            runner.run_seed(outcome, seed, take)
            if seed in outcome.failed:
                break  # its mean would be over other seeds
            if index < len(seeds) - 1:
                value = mean(f[metric.figure] for f in outcome.valid.values())
                report(value, OF_SEED * index + MEAN)
    except PrunedError:
        outcome.is_pruned = True
        for seed in seeds:
            for part in runner.run_folder(outcome.variant, seed).glob("*.partial-*"):
                shutil.rmtree(part)
        runner.say(f"{outcome.variant.name}: given up, below the median")


def _tell(
    study: optuna.Study, trial: Trial | int, outcome: Outcome, metric: Metric
) -> None:
    if outcome.is_pruned:
        study.tell(trial, state=TrialState.PRUNED)
    elif outcome.failed:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, outcome.value(metric))
