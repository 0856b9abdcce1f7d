"""`adrec COMMAND`. Each command is short and calls its stage.

Nothing heavy is imported up here: importing torchrec takes seconds.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from torchrec_adrec.cli import checkpoint as cli_checkpoint
from torchrec_adrec.cli import plan as cli_plan
from torchrec_adrec.cli import serve as cli_serve
from torchrec_adrec.cli.options import ConfigFile, Out, Overrides
from torchrec_adrec.errors import AdRecError, ConfigError
from torchrec_adrec.runs import stages
from torchrec_adrec.runs.run_folder import (
    command_in,
    ranks_of_launcher,
    read_settings,
    should_run,
)
from torchrec_adrec.runs.stage_folder import stage_workspace
from torchrec_adrec.runtime.memory import keep_freed_memory
from torchrec_adrec.runtime.progress import setup_logging
from torchrec_adrec.runtime.threads import keep_threads_awake

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Ad recommendation on sharded TorchRec embeddings, end to end.

    The whole path on this machine: adrec run --config configs/synthetic_demo.yaml --out
    runs/demo. One stage on two ranks: torchx run -s local_cwd dist.ddp -j 1x2 -m
    torchrec_adrec -- train retrieval --out runs/demo""",
)

app.add_typer(cli_checkpoint.app, name="checkpoint")


class TaskName(StrEnum):
    """What can be trained."""

    RETRIEVAL = "retrieval"
    RANKING = "ranking"


class TaskStage(StrEnum):
    """The stages that all ranks run."""

    RETRIEVAL = "retrieval"
    EXPORT = "export"
    INDEX = "index"
    RANKING = "ranking"


@app.command()
def run(
    out: Out,
    config: ConfigFile = None,
    job: Annotated[
        str, typer.Option("-j", help="NODESxRANKS, as torchx takes it.")
    ] = "1x2",
    overrides: Overrides = None,
) -> None:
    """All stages on this machine, skipping those whose inputs have not changed.

    Ends with a table of what was measured and ten ads for one user.
    """
    from torchrec_adrec.pipeline.pipeline import run_pipeline

    with command_in(out, config, overrides) as settings:
        run_pipeline(settings, out, job)


@app.command(hidden=True)
def job(stage: list[TaskStage], out: Out) -> None:
    """Several stages in a row in the same processes, as `adrec run` launches them."""
    keep_threads_awake()  # before anything imports torch
    _run_stages([stages.STAGES[name] for name in stage], out)


def _run_stages(
    several: list[stages.Stage],
    out: Path,
    config: Path | None = None,
    overrides: list[str] | None = None,
) -> None:
    with command_in(out, config, overrides, several[0]) as settings:
        from torchrec_adrec.pipeline.job import run_stages

        run_stages(several, settings, out)


@app.command()
def prepare(out: Out, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Raw files to Parquet, catalog, schema, report; fitted on training rows only.

    Several raw files: any number of ranks shares them, started as `torchx run ... --
    prepare`; what is written does not depend on how many they are.
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
    rows: Annotated[int, typer.Option(min=1)] = 200_000,
    ads: Annotated[int, typer.Option(min=1)] = 2_000,
    users: Annotated[int, typer.Option(min=1)] = 20_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    law: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="The rest of data.synthetic, as drift=0."
        ),
    ] = None,
) -> None:
    """Criteo-format rows of a known world, their truth and what can be reached."""
    from torchrec_adrec.config.run import load_config
    from torchrec_adrec.data.adapters import synthetic
    from torchrec_adrec.evaluation.known_world import judge_rows

    words = [f"rows={rows}", f"ads={ads}", f"users={users}", *(law or [])]
    config = load_config(None, [f"data.synthetic.{word}" for word in words])
    try:
        truth = synthetic.write_beside(config.data.synthetic, seed, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    typer.echo(f"{rows:,} rows, seed {seed}: {path}; their truth: {truth}")
    for name, found in judge_rows(truth / synthetic.ROWS).items():
        figures = ", ".join(f"{k} {v:.4f}" for k, v in found.items() if k != "rows")
        typer.echo(f"Bayes, {name}: {figures}")


@app.command()
def baselines(out: Out, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """The constant and a logistic regression on the test split: what to beat."""
    from torchrec_adrec.evaluation.baselines import baselines as judge

    with command_in(out, config, overrides, stages.BASELINES) as settings:
        if should_run(stages.BASELINES, settings, out):
            with stage_workspace(stages.BASELINES, settings, out) as folder:
                judge(out / "data", folder)


@app.command()
def train(
    task: TaskName,
    out: Out,
    config: ConfigFile = None,
    origin: Annotated[
        Path | None,
        typer.Option("--from", help="Checkpoint of another run to start towers with."),
    ] = None,
    allow_new_tables: Annotated[
        bool, typer.Option(help="What does not fit it stays as initialised.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train the towers or the ranker on all ranks; resumes from its last checkpoint."""
    keep_threads_awake()  # before anything imports torch
    words = [*(overrides or [])]
    if origin is not None:
        if task != TaskName.RETRIEVAL:
            raise ConfigError(
                "--from is for retrieval: a ranker starts with its tables"
            )
        allowed = str(allow_new_tables).lower()
        words += [
            f"retrieval.init_from={origin}",
            f"retrieval.allow_new_tables={allowed}",
        ]
    _run_stages([stages.STAGES[task]], out, config, words)


@app.command()
def evaluate(
    task: TaskName, out: Out, config: ConfigFile = None, overrides: Overrides = None
) -> None:
    """Test figures of the model that is served, on any number of ranks, as JSON."""
    from torchrec_adrec.distributed.process import process_group
    from torchrec_adrec.evaluation.predict import evaluate_split
    from torchrec_adrec.schema import Schema
    from torchrec_adrec.tasks.sharded import restore

    settings = read_settings(config, overrides, out)
    stages.check(stages.STAGES[task], settings, out)
    schema = Schema.load(out / "data/schema.json")
    with process_group(settings.device) as process:
        model, start = restore(task, out, schema, settings, process)
        size = settings.train.eval_batch_size
        test = evaluate_split(
            model, out / "data/test", schema, process, size, settings.data.bounds
        )
        if process.is_first:
            found: dict[str, Any] = {"task": task} | start.origin.model_dump()
            found |= {"world_size": process.world_size, "test": test}
            typer.echo(json.dumps(found))


@app.command()
def export(out: Out, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Encode every ad on all ranks; measure full-catalog recall of held-out clicks."""
    _run_stages([stages.EXPORT], out, config, overrides)


@app.command()
def index(out: Out, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Build the FAISS shards on all ranks; publish only past the recall gate."""
    _run_stages([stages.INDEX], out, config, overrides)


app.command()(cli_serve.recommend)
app.command()(cli_serve.serve)
app.command()(cli_plan.plan)


@app.command()
def doctor() -> None:
    """Versions found, whether they fit together, and the command that fixes them."""
    from torchrec_adrec.runtime.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(f"{'WRONG' if finding.fix else 'ok   '} {finding.text}")
    fixes = list(dict.fromkeys(f.fix for f in findings if f.fix))
    for fix in fixes:
        typer.echo(f"fix it with:\n  {fix}")
    raise typer.Exit(1 if fixes else 0)


def main() -> None:
    """Entry point: what the user caused is one line and exit code 2, no traceback."""
    setup_logging()
    keep_freed_memory()
    try:
        app()
    except (AdRecError, OSError) as error:  # OSError: a full disk, a forbidden file
        typer.echo(f"error: {error}", err=True)
        sys.exit(getattr(error, "code", 2))
