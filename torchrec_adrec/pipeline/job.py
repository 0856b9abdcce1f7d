"""All ranks run several stages one after the other, in the same processes.

To start a launcher, an interpreter and torchrec takes longer than some stages take.
What a stage sets in its process does not reach the next one (`unchanged_process`), so
its files are, bit for bit, those that a launch of its own would write.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.process import (
    Process,
    process_group,
    unchanged_process,
)
from torchrec_adrec.runs.run_folder import should_run
from torchrec_adrec.runs.stage_folder import stage_workspace
from torchrec_adrec.runs.stages import (
    BASELINES,
    EXPORT,
    INDEX,
    RANKING,
    RETRIEVAL,
    Stage,
    is_done,
)

log = logging.getLogger(__name__)
# What a stage does, with its settings, the run's folder, its ranks and its own folder.
# Each imports what it needs, so that a job of one stage loads nothing else.
Work = Callable[[Config, Path, Process, Path], None]


def run_stages(
    stages: Sequence[Stage], settings: Config, out: Path, again: bool = False
) -> None:
    """Run the stages whose inputs have changed. Collective; an error ends all of them.

    Args:
        stages: in the order in which they read one another.
        settings: of the run.
        out: the run's folder, held by this command.
        again: also those whose inputs are the same.
    """
    with ExitStack() as closing:
        process: Process | None = None
        for stage in stages:
            if not should_run(stage, settings, out, again):
                continue
            # Not before a stage has work: to join the group and import torchrec takes
            # seconds that a finished run need not spend.
            if process is None:
                process = closing.enter_context(process_group(settings.device))
            began = time.monotonic()
            with (
                unchanged_process(process.device),
                stage_workspace(stage, settings, out, process) as folder,
            ):
                WORK[stage.name](settings, out, process, folder)
            if process.is_first:
                seconds = time.monotonic() - began
                log.info("%s: finished in %.0f s", stage.name, seconds)


def _train(
    task: str, settings: Config, out: Path, process: Process, folder: Path
) -> None:
    from torchrec_adrec.evaluation.below import warn_below
    from torchrec_adrec.tasks.sharded import final_checkpoint
    from torchrec_adrec.training.refit import fit_stage

    is_ranker = task == RANKING.name
    towers = final_checkpoint(out / "retrieval") if is_ranker else None
    metrics = fit_stage(task, settings, process, out / "data", folder, towers)
    # Baselines of other data would be no comparison; without any, nothing is compared.
    if process.is_first and is_done(BASELINES, settings, out):
        baselines = json.loads((out / "baselines/metrics.json").read_text())
        warn_below({"baselines": baselines, task: metrics})


def _export(settings: Config, out: Path, process: Process, folder: Path) -> None:
    from torchrec_adrec.export.export import export
    from torchrec_adrec.schema import Schema
    from torchrec_adrec.tasks.sharded import restore

    schema = Schema.load(out / "data/schema.json")
    model, checkpoint = restore("retrieval", out, schema, settings, process)
    export(model, checkpoint, out / "data", settings, process, folder)


def _index(settings: Config, out: Path, process: Process, folder: Path) -> None:
    from torchrec_adrec.export.build_index import build_index
    from torchrec_adrec.export.update import carry_changes

    if process.is_first:
        carry_changes(out, settings.index.keep_versions)
    process.barrier()  # every rank builds the index with these changes
    build_index(
        out / "export",
        settings.index,
        process,
        folder,
        k=settings.recommend.candidates,
        seed=settings.seed,
    )


WORK: dict[str, Work] = {
    RETRIEVAL.name: partial(_train, RETRIEVAL.name),
    EXPORT.name: _export,
    INDEX.name: _index,
    RANKING.name: partial(_train, RANKING.name),
}
