"""`adrec COMMAND`: the commands, and how each of them ends."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from torchrec_adrec import __version__
from torchrec_adrec.cli import (
    certify,
    checkpoint,
    compare,
    evaluate,
    index,
    init,
    lightgcn,
    page,
    plan,
    serve,
    settings,
    stages,
    sweep,
    versions,
)
from torchrec_adrec.errors import AdRecError, ConfigError, LostRankError
from torchrec_adrec.runtime.logs import setup_logging
from torchrec_adrec.runtime.memory import keep_freed_memory
from torchrec_adrec.runtime.status import Status, send

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="""Ad recommendation on sharded TorchRec embeddings, from raw logs to ten ads.

    A run is a folder. Each stage reads the folders of the stages before it and makes
    its own: data, baselines, retrieval, export, index, ranking. Its settings come from
    a YAML file and from KEY=VALUE on the command line, and are kept in the folder.

    \b
    All stages on this machine, on two processes, with rows that are made up:
      adrec run --demo
    One stage again, with another setting, on two processes:
      torchx run -s local_cwd adrec.train --task ranking --out runs/demo -j 1x2 \\
        -- ranking.layers=3
    Ten ads for a user:
      adrec recommend --out runs/demo
    """,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"torchrec_adrec {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Print the version, and nothing else.",
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


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


COMMANDS: tuple[Callable[..., None], ...] = (  # in the order of `adrec --help`
    stages.run,
    init.init,
    stages.prepare,
    synthesize,
    stages.baselines,
    lightgcn.lightgcn,
    stages.train,
    stages.export,
    serve.recommend,
    serve.serve,
    page.page,
    certify.explain,
    certify.certify,
    certify.bundle,
    compare.compare,
    sweep.sweep,
    plan.plan,
    settings.settings,
    doctor,
)
for command in COMMANDS:
    app.command()(command)
app.command(hidden=True)(stages.job)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(index.app, name="index")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(versions.app, name="versions")


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
