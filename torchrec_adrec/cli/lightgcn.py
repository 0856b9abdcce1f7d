"""`adrec lightgcn` makes vectors that the towers learn or start from."""

from typing import Annotated

import typer

from torchrec_adrec.cli.options import Out, Overrides
from torchrec_adrec.runs.run_folder import read_settings


def lightgcn(
    out: Out,
    dim: Annotated[
        int | None,
        typer.Option(
            min=1, help="Numbers of a vector. Default: retrieval.embedding_dim."
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Fit LightGCN on the training clicks and keep its vectors in RUN/lightgcn.

    The towers can start with them (`retrieval.start_from`, whose tables are as wide as
    `retrieval.embedding_dim`) or be drawn towards them (`retrieval.teacher`, of vectors
    as wide as `retrieval.output_dim`). The run needs only its data, with users.

    \b
      adrec prepare --config configs/amazon_beauty.yaml --out runs/beauty
      adrec lightgcn --out runs/beauty
      adrec train retrieval --out runs/beauty retrieval.start_from=runs/beauty/lightgcn
    """
    from torchrec_adrec.export.lightgcn import METHOD, keep_lightgcn

    settings, folder = read_settings(None, overrides, out), out / METHOD
    width = dim or settings.retrieval.embedding_dim
    source = keep_lightgcn(out / "data", folder, width, settings.seed)
    typer.echo(
        f"{folder}: {source['users']:,} users and {source['ads']:,} ads with training"
        f" clicks, {width} numbers each, NDCG@10 {source['ndcg@10']:.4f} on validation"
    )
