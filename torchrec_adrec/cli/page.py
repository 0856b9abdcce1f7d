"""`adrec page` shows a finished run in the browser."""

from typing import Annotated

import typer

from torchrec_adrec.cli.options import Out


def page(
    out: Out,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8501,
) -> None:
    """Show a finished run in the browser; needs the extra `page`.

    Choose or change a user and see ten ads, why each is there, and what popularity and
    retrieval alone would show; beside it the run's quality, data and training.

    \b
      adrec page --out runs/demo
    """
    from torchrec_adrec.page.server import serve

    serve(out, host, port)
