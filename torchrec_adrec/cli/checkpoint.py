"""`adrec checkpoint COMMAND` shows what is in checkpoints, without training."""

from pathlib import Path
from typing import Annotated

import typer

# As in app.py, each command imports what it needs: torch takes seconds.
app = typer.Typer(
    no_args_is_help=True,
    help="Look into checkpoints, and check which rows a run was trained on.",
)
Step = Annotated[
    Path, typer.Argument(help="A folder RUN/STAGE/checkpoints/step-NUMBER.")
]


@app.command()
def inspect(path: Step) -> None:
    """Print the step, every table and parameter, and what is not finite.

    \b
      adrec checkpoint inspect runs/demo/retrieval/checkpoints/step-00000750
    """
    from torchrec_adrec.distributed.checkpoint_files import open_checkpoint
    from torchrec_adrec.distributed.checkpoint_report import inspection
    from torchrec_adrec.pipeline.report import wide_console

    wide_console().print(inspection(open_checkpoint(path)))


@app.command()
def diff(first: Step, second: Step) -> None:
    """Print how two checkpoints differ: keys, shapes, tensors, settings.

    \b
      cd runs/demo/retrieval/checkpoints
      adrec checkpoint diff step-00000600 step-00000750
    """
    from torchrec_adrec.distributed.checkpoint_files import open_checkpoint
    from torchrec_adrec.distributed.checkpoint_report import comparison
    from torchrec_adrec.pipeline.report import wide_console

    table = comparison(open_checkpoint(first), open_checkpoint(second))
    wide_console().print(table)


@app.command()
def ledger(
    stage: Annotated[Path, typer.Argument(help="A finished stage: RUN/retrieval.")],
) -> None:
    """Count the rows that a run has lost or taken twice; needs train.ledger=true.

    Exit code 1 if there are any.

    \b
      adrec run --config configs/synthetic_demo.yaml --out runs/x train.ledger=true
      adrec checkpoint ledger runs/x/retrieval
    """
    from torchrec_adrec.training.ledger_report import audit_stage

    epochs = audit_stage(stage)
    for epoch in epochs:
        typer.echo(
            f"epoch {epoch.epoch}: {epoch.rows:,} rows trained on, {len(epoch.lost)}"
            f" lost, {len(epoch.doubled)} doubled, {len(epoch.foreign)} not of it"
        )
    raise typer.Exit(0 if all(epoch.is_whole for epoch in epochs) else 1)
