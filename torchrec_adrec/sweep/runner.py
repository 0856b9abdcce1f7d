"""Makes the runs of a sweep one after the other; the failure of one is no end."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torchrec_adrec.config.run import Config
from torchrec_adrec.errors import AdRecError, BusyError, DiskError, StageError
from torchrec_adrec.pipeline.display import StageLines, stage_lines
from torchrec_adrec.pipeline.pipeline import launch
from torchrec_adrec.runs.run_folder import command_in
from torchrec_adrec.runs.stage_folder import make_run
from torchrec_adrec.runs.stages import STAGES, Stage, is_done
from torchrec_adrec.runtime.status import Status
from torchrec_adrec.sweep.outcome import Outcome
from torchrec_adrec.sweep.plan import Plan, Variant, folder_name
from torchrec_adrec.sweep.share import share_stage

RUNS = "runs"
LOOK_AGAIN_S = 1.0  # whether the stage of a sweep that was killed has ended

log = logging.getLogger(__name__)
OnFigures = Callable[[Status], None]


def ignore(status: Status) -> None:
    """Take figures that nobody waits for."""


@dataclass
class Runner:
    """Makes runs below the folder of a sweep.

    Args:
        plan: what they are made of.
        out: folder of the sweep, held by this command.
        job: `1xRANKS`, for each run.
        say: shows a line.
        total: number of runs that are expected.
    """

    plan: Plan
    out: Path
    job: str
    say: Callable[[str], None]
    total: int
    _begun: int = field(default=0, init=False)
    _seconds: list[float] = field(default_factory=list, init=False)

    def run_variant(self, variant: Variant) -> Outcome:
        """Make the runs of all seeds of a variant."""
        outcome = Outcome(variant)
        for seed in self.plan.sweep.seeds:
            self.run_seed(outcome, seed)
        return outcome

    def run_seed(
        self, outcome: Outcome, seed: int, on_figures: OnFigures = ignore
    ) -> None:
        """Make one run, and add its figures or why there are none to the outcome.

        Args:
            outcome: of the variant.
            seed: of the run.
            on_figures: takes those that training sends; what it raises ends the run.

        Raises:
            StageError: this command was asked to stop.
        """
        self._begun += 1
        name = f"{outcome.variant.name}, seed {seed}"
        self.say(f"[{self._begun} of {self.total}] {name}{self._time_left()}")
        began = time.monotonic()
        try:
            self._make(outcome, seed, on_figures)
        except StageError as error:
            if error.signal:
                raise
            outcome.failed[seed] = str(error)
        except DiskError:
            raise  # the next run would meet it too
        except AdRecError as error:
            outcome.failed[seed] = str(error)
        else:
            self._seconds.append(time.monotonic() - began)
        if seed in outcome.failed:
            self.say(f"FAILED {name}: {outcome.failed[seed]}")

    def _time_left(self) -> str:
        if not self._seconds:
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        return f", about {mean * (self.total - self._begun + 1) / 60:.1f} min left"

    def _make(self, outcome: Outcome, seed: int, on_figures: OnFigures) -> None:
        run = self.run_folder(outcome.variant, seed)
        metric = self.plan.metric

        def figure_of(stage: str) -> str:
            # The figures on test rows are looked at once, when a variant is chosen.
            if stage != metric.stage:
                return "done"
            return f"validation {metric} {metric.valid(run)[metric.figure]:.4f}"

        words = self.plan.words(outcome.variant, seed)
        with self._opened(run, words) as config:
            with stage_lines(run, figure_of, on_figures) as display:
                try:
                    self._stages(config, run, display)
                except StageError as error:
                    reason = " ".join(display.errors[:1]).splitlines()
                    # Its last line: of a bug that is the exception itself.
                    text = f"{error} ({reason[-1]})" if reason else str(error)
                    raise StageError(text, error.signal) from None
            outcome.valid[seed] = metric.valid(run)

    def run_folder(self, variant: Variant, seed: int) -> Path:
        """Return the folder of one run."""
        return self.out / RUNS / folder_name(variant.name) / f"seed-{seed}"

    @contextmanager
    def _opened(self, run: Path, words: list[str]) -> Iterator[Config]:
        """Hold a run; wait for the end of a stage that a killed sweep has left."""
        make_run(run.parent)
        with ExitStack() as held:
            is_waiting = False
            while True:
                try:
                    config = held.enter_context(
                        command_in(run, self.plan.config, words)
                    )
                    break
                except BusyError as error:
                    if not is_waiting:
                        self.say(f"waiting: {error}")
                    is_waiting = True
                    time.sleep(LOOK_AGAIN_S)
            yield config

    def _stages(self, config: Config, run: Path, display: StageLines) -> None:
        """Make the stages that neither this run nor another one has."""
        pending: list[Stage] = []
        for stage in (STAGES[name] for name in self.plan.stages):
            waits = any(needed.name in stage.needs for needed in pending)
            if not waits and is_done(stage, config, run):
                display.skip(stage.name)
            elif not waits and self._share(stage, config, run):
                display.finish(stage.name, "shared with a run of the same inputs")
            elif stage.ranks == "all":
                pending.append(stage)
            else:
                launch([stage], config, run, self.job, display)
        if pending:
            launch(pending, config, run, self.job, display)

    def _share(self, stage: Stage, config: Config, run: Path) -> bool:
        others = sorted((self.out / RUNS).glob("*/*/"))
        is_shared = share_stage(stage, config, run, others)
        if is_shared:
            log.info("%s: %s is shared with another run", run, stage.name)
        return is_shared
