"""`adrec checkpoint COMMAND`: look at what training left, without training."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at checkpoints and what led there.")
Step = Annotated[Path, typer.Argument(help="A step-N folder below checkpoints/.")]


@app.command()
def inspect(path: Step) -> None:
    """Where training stood, every table and parameter, what is not finite."""
    from torchrec_adrec.distributed.checkpoint_files import open_checkpoint
    from torchrec_adrec.distributed.checkpoint_report import inspection
    from torchrec_adrec.pipeline.report import wide_console

    wide_console().print(inspection(open_checkpoint(path)))


@app.command()
def diff(first: Step, second: Step) -> None:
    """Keys, shapes, the tensors that differ most, and the settings that differ."""
    from torchrec_adrec.distributed.checkpoint_files import open_checkpoint
    from torchrec_adrec.distributed.checkpoint_report import comparison
    from torchrec_adrec.pipeline.report import wide_console

    table = comparison(open_checkpoint(first), open_checkpoint(second))
    wide_console().print(table)


@app.command()
def ledger(
    stage: Annotated[Path, typer.Argument(help="A finished stage: RUN/retrieval.")],
) -> None:
    """Which rows a finished run lost or took twice; needs train.ledger=true.

    Exit code 1 if there are any.
    """
    from torchrec_adrec.training.ledger_report import audit_stage

    epochs = audit_stage(stage)
    for found in epochs:
        typer.echo(
            f"epoch {found.epoch}: {found.rows:,} rows trained on, {len(found.lost)}"
            f" lost, {len(found.doubled)} doubled, {len(found.foreign)} not of it"
        )
    raise typer.Exit(0 if all(found.is_whole for found in epochs) else 1)
