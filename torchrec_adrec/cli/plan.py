"""`adrec plan`: what a cluster would have to hold, without one."""

from pathlib import Path
from typing import Annotated

import typer

from torchrec_adrec.cli.options import ConfigFile, Overrides


def plan(
    gpus: Annotated[
        str,
        typer.Option(
            help="COUNTxGPU, as 8xH100-80GB: COUNT GPUs a node, --nodes of them. A"
            " COUNT above 8 without --nodes is that of all GPUs, in nodes of 8."
        ),
    ],
    nodes: Annotated[int | None, typer.Option(min=1, help="Default: 1.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of a step over all GPUs: train.batch_size."),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="schema.json, as `prepare` writes it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Or a prepared run.")] = None,
    config: ConfigFile = None,
    ads: Annotated[
        int | None, typer.Option(min=1, help="Of the index; default: the run's.")
    ] = None,
    clicked: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of clicked rows; default: the run's, .25."
        ),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            help="GPU=DOLLARS an hour, as H100-80GB=2.50; may be repeated. Default: an"
            " assumption, see gpus.yaml."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Another cluster, as 64xA100-40GB; may be repeated."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """What training the towers needs on GPUs that need not be there.

    The sharding plan, memory a GPU, bytes sent and estimated milliseconds a step with
    what limits it, dollars, the checkpoint, the index. What does not fit is refused
    (exit code 2) with the numbers and the smallest cluster that does. Nothing moves to
    host memory unasked.
    """
    from torchrec_adrec.planning.command import lines_of
    from torchrec_adrec.planning.job import Job

    job = Job.read(schema, out, config, overrides or [], batch, ads, clicked)
    for line in lines_of(job, gpus, nodes, compare or [], price or []):
        typer.echo(line)
