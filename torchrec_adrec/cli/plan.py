"""`adrec plan` says what training needs of GPUs that need not be there."""

from pathlib import Path
from typing import Annotated

import typer

from torchrec_adrec.cli.options import ConfigFile, Overrides


def plan(
    gpus: Annotated[
        str,
        typer.Option(
            help="COUNTxGPU, as 8xH100-80GB: GPUs of a node, with --nodes of them. A"
            " COUNT above 8 without --nodes means all GPUs, in nodes of 8."
        ),
    ],
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Number of nodes. Default: 1.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows of a step, over all GPUs. Default: train.batch_size."
        ),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="schema.json, as `prepare` writes it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A prepared run, in place of --schema.")
    ] = None,
    config: ConfigFile = None,
    ads: Annotated[
        int | None,
        typer.Option(min=1, help="Ads in the index. Default: those of the run."),
    ] = None,
    clicked: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of clicked rows. Default: that of the run, or 0.25.",
        ),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            help="GPU=DOLLARS for an hour, as H100-80GB=2.50; may be repeated. Default:"
            " the assumptions of gpus.yaml."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Another cluster to compare, as 64xA100-40GB; may be repeated."
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print what training the towers needs on a cluster that need not be there.

    That is the sharding plan, the memory of each GPU, the bytes sent and the estimated
    milliseconds of a step with what limits it, the price, and the sizes of checkpoint
    and index. Tables that do not fit are refused (exit code 2), with the numbers and
    the smallest cluster that holds them. Nothing moves to host memory unasked.

    \b
      adrec plan --gpus 8xH100-80GB --out runs/demo
      adrec plan --gpus 16xA100-40GB --schema schema.json --config big.yaml \\
        --compare 8xH100-80GB --price H100-80GB=2.50
    """
    from torchrec_adrec.planning.command import lines_of
    from torchrec_adrec.planning.job import Job

    job = Job.read(schema, out, config, overrides or [], batch, ads, clicked)
    for line in lines_of(job, gpus, nodes, compare or [], price or []):
        typer.echo(line)
