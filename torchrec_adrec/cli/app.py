"""`adrec COMMAND`: each command is short and calls its stage.

Nothing heavy is imported at the top: importing torchrec takes seconds, and `--help`
should not wait for it.
"""

import json
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from torchrec_adrec.cli import checkpoint, plan, serve
from torchrec_adrec.cli.options import ConfigFile, Out, Overrides, Verbose
from torchrec_adrec.errors import AdRecError, ConfigError, LostRankError
from torchrec_adrec.runs import stages
from torchrec_adrec.runs.run_folder import (
    command_in,
    ranks_of_launcher,
    read_settings,
    should_run,
)
from torchrec_adrec.runs.stage_folder import stage_workspace
from torchrec_adrec.runtime.logs import be_verbose, log_to_file, setup_logging
from torchrec_adrec.runtime.memory import keep_freed_memory
from torchrec_adrec.runtime.status import Status, send
from torchrec_adrec.runtime.threads import keep_threads_awake

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Ad recommendation on sharded TorchRec embeddings, from raw logs to ten ads.

    A run is a folder. Each stage reads the folders of the stages before it and makes
    its own: data, baselines, retrieval, export, index, ranking. Its settings come from
    a YAML file and from KEY=VALUE on the command line, and are kept in the folder.

    \b
    All stages on this machine, on two processes, with rows that are made up:
      adrec run --config configs/synthetic_demo.yaml --out runs/demo -j 1x2
    One stage again, with another setting, on two processes:
      torchx run -s local_cwd adrec.train --task ranking --out runs/demo -j 1x2 \\
        -- ranking.layers=3
    Ten ads for a user:
      adrec recommend --out runs/demo
    """,
)

app.add_typer(checkpoint.app, name="checkpoint")


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


@app.command()
def run(
    out: Out,
    config: ConfigFile = None,
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
      adrec run --config configs/synthetic_demo.yaml --out runs/demo
    Your own rows:
      adrec run --config my.yaml data.raw=clicks.csv --out runs/mine -j 1x4
    The same run with another ranker (the stages before it are kept):
      adrec run --out runs/mine ranking.layers=3
    """
    from torchrec_adrec.pipeline.display import RUN_LOG
    from torchrec_adrec.pipeline.pipeline import run_pipeline

    with command_in(out, config, overrides) as settings:
        if verbose:
            be_verbose()
        else:
            log_to_file(out / RUN_LOG)
        run_pipeline(settings, out, job, verbose)


@app.command(hidden=True)
def job(stage: list[TaskStage], out: Out) -> None:
    """Run several stages in the same processes, as `adrec run` launches them."""
    keep_threads_awake()  # before anything imports torch
    _run_stages([stages.STAGES[name] for name in stage], out)


def _run_stages(
    several: list[stages.Stage],
    out: Path,
    config: Path | None = None,
    overrides: list[str] | None = None,
    verbose: bool = False,
) -> None:
    if verbose:
        be_verbose()
    with command_in(out, config, overrides, several[0]) as settings:
        from torchrec_adrec.pipeline.job import run_stages

        run_stages(several, settings, out)


@app.command()
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
        if not should_run(stages.DATA, settings, out):
            return
        with (
            ranks_of_launcher() as ranks,
            stage_workspace(stages.DATA, settings, out, ranks) as folder,
        ):
            data = open_data(settings.data, settings.seed, folder, ranks)
            prepare_data(settings.data, data, folder, settings.seed, ranks)


@app.command()
def synthesize(
    path: Annotated[Path, typer.Argument(help="TSV file to write.")],
    rows: Annotated[int, typer.Option(min=1, help="Number of rows.")] = 200_000,
    ads: Annotated[int, typer.Option(min=1, help="Number of ads.")] = 2_000,
    users: Annotated[int, typer.Option(min=1, help="Number of users.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Another one gives other rows.")] = 0,
    law: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="The rest of data.synthetic, as drift=0."
        ),
    ] = None,
) -> None:
    """Write rows in Criteo's format whose true click probabilities are known.

    The truth is written to the folder PATH.truth, and the best figures that any model
    can reach on these rows are printed.

    \b
      adrec synthesize rows.tsv --rows 50000 drift=0
    """
    from torchrec_adrec.config.run import load_config
    from torchrec_adrec.data.adapters import synthetic
    from torchrec_adrec.evaluation.known_world import judge_rows

    sizes = [f"rows={rows}", f"ads={ads}", f"users={users}"]
    args = [f"data.synthetic.{setting}" for setting in (*sizes, *(law or []))]
    config = load_config(None, args)
    try:
        truth = synthetic.write_beside(config.data.synthetic, seed, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    typer.echo(f"{rows:,} rows, seed {seed}: {path}; their truth: {truth}")
    for name, metrics in judge_rows(truth / synthetic.ROWS).items():
        figures = ", ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k != "rows")
        typer.echo(f"Bayes, {name}: {figures}")


@app.command()
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


@app.command()
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
    _run_stages([stages.STAGES[task]], out, config, args, verbose)


@app.command()
def evaluate(
    task: Task, out: Out, config: ConfigFile = None, overrides: Overrides = None
) -> None:
    """Print the test figures of the model that is served, as one line of JSON.

    \b
      adrec evaluate ranking --out runs/demo
    """
    from torchrec_adrec.distributed.process import process_group
    from torchrec_adrec.evaluation.predict import evaluate_split
    from torchrec_adrec.schema import Schema
    from torchrec_adrec.tasks.sharded import restore

    settings = read_settings(config, overrides, out)
    stages.check(stages.STAGES[task], settings, out)
    schema = Schema.load(out / "data/schema.json")
    with process_group(settings.device) as process:
        model, checkpoint = restore(task, out, schema, settings, process)
        size = settings.train.eval_batch_size
        test = evaluate_split(
            model, out / "data/test", schema, process, size, settings.data.bounds
        )
        if process.is_first:
            metrics: dict[str, Any] = {"task": task} | checkpoint.origin.model_dump()
            metrics |= {"world_size": process.world_size, "test": test}
            typer.echo(json.dumps(metrics))


@app.command()
def export(
    out: Out,
    config: ConfigFile = None,
    verbose: Verbose = False,
    overrides: Overrides = None,
) -> None:
    """Encode every ad on all ranks; measure the recall of clicks that were held out.

    \b
      torchx run -s local_cwd adrec.export --out runs/demo -j 1x2
    """
    _run_stages([stages.EXPORT], out, config, overrides, verbose)


@app.command()
def index(
    out: Out,
    config: ConfigFile = None,
    verbose: Verbose = False,
    overrides: Overrides = None,
) -> None:
    """Build the FAISS shards on all ranks; publish them only past the recall gate.

    \b
      torchx run -s local_cwd adrec.index --out runs/demo -j 1x2 -- index.shards=4
    """
    _run_stages([stages.INDEX], out, config, overrides, verbose)


app.command()(serve.recommend)
app.command()(serve.serve)
app.command()(plan.plan)


@app.command()
def doctor() -> None:
    """Check the installed versions; print the command that repairs what does not fit.

    Exit code 1 if anything is wrong.
    """
    from torchrec_adrec.runtime.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(f"{'WRONG' if finding.fix else 'ok   '} {finding.text}")
    fixes = list(dict.fromkeys(f.fix for f in findings if f.fix))
    for fix in fixes:
        typer.echo(f"fix it with:\n  {fix}")
    raise typer.Exit(1 if fixes else 0)


def main() -> None:
    """Run a command; what the user caused is one line and exit code 2, no traceback."""
    setup_logging()
    keep_freed_memory()
    try:
        app(prog_name="adrec")
    except (AdRecError, OSError) as error:  # OSError: a full disk, a forbidden file
        typer.echo(f"error: {error}", err=True)
        # A rank that lost another one does not know why: that rank says so itself.
        if not isinstance(error, LostRankError):
            send(Status("error", f"error: {error}"))
        sys.exit(getattr(error, "code", 2))
    except Exception:  # a bug: an `adrec run` above shows where, and Python prints it
        send(Status("error", traceback.format_exc().rstrip()))
        raise
