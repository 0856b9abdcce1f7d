"""Stages that all ranks run, one after the other in the same processes.

A launcher, an interpreter and torchrec take longer to start than some stages take. What
a stage leaves in its process does not reach the next one (`unchanged_process`): its
files are those that a launch of its own writes, bit for bit.
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
Work = Callable[[Config, Path, Process, Path], None]


def run_stages(stages: Sequence[Stage], settings: Config, out: Path) -> None:
    """Run those whose inputs have changed. Collective; an error ends all of them."""
    with ExitStack() as closing:
        process: Process | None = None
        for stage in stages:
            if not should_run(stage, settings, out):
                continue
            if process is None:
                process = closing.enter_context(process_group(settings.device))
            began = time.monotonic()
            with (
                unchanged_process(process.device),
                stage_workspace(stage, settings, out, process) as folder,
            ):
                WORK[stage.name](settings, out, process, folder)
            if process.is_first:
                took = time.monotonic() - began
                log.info("%s: finished in %.0f s", stage.name, took)


def _train(task: str, settings: Config, out: Path, process: Process, to: Path) -> None:
    from torchrec_adrec.evaluation.below import warn_below
    from torchrec_adrec.tasks.ranking import warm_starts
    from torchrec_adrec.tasks.sharded import final_checkpoint
    from torchrec_adrec.training.trainer import Trainer

    warm = task == RANKING.name and warm_starts(settings.ranking)
    start = final_checkpoint(out / "retrieval") if warm else None
    metrics = Trainer(task, settings, process, out / "data", to, start).fit()
    if process.is_first and is_done(BASELINES, settings, out):
        baselines = json.loads((out / "baselines/metrics.json").read_text())
        warn_below({"baselines": baselines, task: metrics})


def _export(settings: Config, out: Path, process: Process, to: Path) -> None:
    from torchrec_adrec.export.encode import export
    from torchrec_adrec.schema import Schema
    from torchrec_adrec.tasks.sharded import restore

    schema = Schema.load(out / "data/schema.json")
    model, start = restore("retrieval", out, schema, settings, process)
    export(model, start, out / "data", settings, process, to)


def _index(settings: Config, out: Path, process: Process, to: Path) -> None:
    from torchrec_adrec.export.build_index import build_index

    build_index(
        out / "export",
        settings.index,
        process,
        to,
        k=settings.recommend.candidates,
        seed=settings.seed,
    )


WORK: dict[str, Work] = {
    RETRIEVAL.name: partial(_train, RETRIEVAL.name),
    EXPORT.name: _export,
    INDEX.name: _index,
    RANKING.name: partial(_train, RANKING.name),
}
