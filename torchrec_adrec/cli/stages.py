"""Commands that make the stages of a run: all of them by `adrec run`, or one.

Nothing heavy is imported at the top: importing torchrec takes seconds, and `--help`
should not wait for it.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from torchrec_adrec.cli.demo import CONFIG as DEMO_CONFIG
from torchrec_adrec.cli.demo import OUT as DEMO_OUT
from torchrec_adrec.cli.demo import next_steps
from torchrec_adrec.cli.options import (
    ConfigFile,
    Key,
    Out,
    Overrides,
    To,
    Verbose,
    written_to,
)
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runs import stages
from torchrec_adrec.runs.run_folder import (
    command_in,
    ranks_of_launcher,
    read_settings,
    should_run,
)
from torchrec_adrec.runs.stage_folder import stage_workspace
from torchrec_adrec.runtime.disk import disk_errors
from torchrec_adrec.runtime.logs import be_verbose, log_to_file
from torchrec_adrec.runtime.threads import keep_threads_awake


class TaskName(StrEnum):
    """The models that can be trained."""

    RETRIEVAL = "retrieval"
    RANKING = "ranking"


class TaskStage(StrEnum):
    """The stages that all ranks run."""

    RETRIEVAL = "retrieval"
    EXPORT = "export"
    INDEX = "index"
    RANKING = "ranking"


Task = Annotated[TaskName, typer.Argument(help="The two towers, or the ranker.")]


def run(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the run. It holds one folder for each stage. Default with"
            " --demo: runs/demo.",
        ),
    ] = None,
    config: ConfigFile = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Rows that are made up; nothing else is needed."),
    ] = False,
    job: Annotated[
        str, typer.Option("-j", help="1xRANKS: how many processes share a stage.")
    ] = "1x2",
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Print all that the stages print, in place of a line for each.",
        ),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Run all stages on this machine, skipping those whose inputs have not changed.

    It ends with a table of what was measured and ten ads for one user; report.md in the
    folder of the run has more. Details of the stages go to run.log beside it. After an
    interruption the same command goes on from what is finished.

    \b
    Rows that are made up, a few minutes on two cores:
      adrec run --demo
    Your own rows:
      adrec run --config my.yaml data.raw=clicks.csv --out runs/mine -j 1x4
    The same run with another ranker (the stages before it are kept):
      adrec run --out runs/mine ranking.layers=3
    """
    if demo and config is not None:
        raise ConfigError("--demo has settings of its own: leave --config out")
    if demo:
        out, config = out or DEMO_OUT, DEMO_CONFIG
    if out is None:
        raise ConfigError("--out FOLDER is missing; or run --demo, which needs nothing")
    from torchrec_adrec.pipeline.display import RUN_LOG
    from torchrec_adrec.pipeline.pipeline import run_pipeline

    with command_in(out, config, overrides) as settings:
        # Not before the folder is held: the log file would be another command's.
        if verbose:
            be_verbose()
        else:
            log_to_file(out / RUN_LOG)
        run_pipeline(settings, out, job, verbose)
    if demo:
        typer.echo(next_steps(out))


def job(stage: list[TaskStage], out: Out) -> None:
    """Run several stages in the same processes, as `adrec run` launches them."""
    keep_threads_awake()  # before anything imports torch
    run_stages([stages.STAGES[name] for name in stage], out)


def run_stages(
    several: list[stages.Stage],
    out: Path,
    config: Path | None = None,
    overrides: list[str] | None = None,
    verbose: bool = False,
    again: bool = False,
) -> None:
    """Run stages in this process, one rank of the launcher's.

    Args:
        several: in the order in which they read one another.
        out: the run's folder.
        config, overrides, verbose: as commands take them.
        again: also those that are done.
    """
    if verbose:
        be_verbose()
    # The inputs of the first stage are checked before torchrec is imported, so that a
    # refusal comes at once. Those of the others may not be made yet.
    with command_in(out, config, overrides, several[0]) as settings:
        from torchrec_adrec.pipeline import job as work

        work.run_stages(several, settings, out, again)


def prepare(out: Out, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Turn raw files into Parquet, a catalog of the ads, a schema and a report.

    Vocabularies and statistics are fitted on the training rows only. Several raw files
    can be shared by any number of processes, which does not change what is written.

    \b
      adrec prepare --config configs/criteo_kaggle.yaml data.raw=train.txt --out runs/x
      torchx run -s local_cwd adrec.prepare --config configs/criteo_1tb.yaml \\
        --out runs/x -j 1x4
    """
    from torchrec_adrec.data.adapters import open_data
    from torchrec_adrec.data.prepare.prepare import prepare as prepare_data

    with command_in(out, config, overrides, stages.DATA) as settings:
        # Before the ranks meet: each of them finds the same answer by itself.
        if not should_run(stages.DATA, settings, out):
            return
        with (
            ranks_of_launcher() as ranks,
            stage_workspace(stages.DATA, settings, out, ranks) as folder,
        ):
            seed = settings.data_seed
            data = open_data(settings.data, seed, folder, ranks)
            prepare_data(settings.data, data, folder, seed, ranks)


def baselines(out: Out, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Judge a constant and a logistic regression on the test rows: what to beat.

    \b
      adrec baselines --out runs/demo
    """
    from torchrec_adrec.evaluation.baselines import baselines as judge

    with command_in(out, config, overrides, stages.BASELINES) as settings:
        if should_run(stages.BASELINES, settings, out):
            with stage_workspace(stages.BASELINES, settings, out) as folder:
                judge(out / "data", folder)


def train(
    task: Task,
    out: Out,
    config: ConfigFile = None,
    origin: Annotated[
        Path | None,
        typer.Option("--from", help="Checkpoint of another run to start towers with."),
    ] = None,
    allow_new_tables: Annotated[
        bool,
        typer.Option(help="What does not fit that checkpoint stays as initialised."),
    ] = False,
    verbose: Verbose = False,
    overrides: Overrides = None,
) -> None:
    """Train the towers or the ranker on all ranks, from the last checkpoint if any.

    \b
      adrec train retrieval --out runs/demo
      adrec train ranking --out runs/demo ranking.layers=3
      torchx run -s local_cwd adrec.train --task retrieval --out runs/demo -j 1x2
    """
    keep_threads_awake()  # before anything imports torch
    # Both options are settings, so that the stage's record holds them like the others.
    args = [*(overrides or [])]
    if origin is not None:
        if task != TaskName.RETRIEVAL:
            raise ConfigError(
                "--from is for retrieval: a ranker starts with its tables"
            )
        allowed = str(allow_new_tables).lower()
        args += [
            f"retrieval.init_from={origin}",
            f"retrieval.allow_new_tables={allowed}",
        ]
    run_stages([stages.STAGES[task]], out, config, args, verbose)


def export(
    out: Out,
    config: ConfigFile = None,
    users: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file of users, who are encoded in place of the ads."
        ),
    ] = None,
    to: To = None,
    key: Key = None,
    verbose: Verbose = False,
    overrides: Overrides = None,
) -> None:
    """Encode every ad on all ranks; measure the recall of clicks that were held out.

    Parts that were finished before a stop are kept. With --users, vectors of other
    users are written to a file, from the towers of the run.

    \b
      torchx run -s local_cwd adrec.export --out runs/demo -j 1x2
      adrec export --out runs/demo --users users.parquet --to vectors.parquet
    """
    if users is None:
        run_stages([stages.EXPORT], out, config, overrides, verbose)
        return
    from torchrec_adrec.distributed.process import process_group
    from torchrec_adrec.export.users import export_users

    target = written_to(to, "--users")
    # It only reads the run, so it need not hold it; but what it reads must fit.
    settings = read_settings(config, overrides, out)
    stages.check(stages.RETRIEVAL, settings, out)
    with disk_errors(target.parent), process_group(settings.device) as process:
        export_users(out, users, key, target, settings, process)
