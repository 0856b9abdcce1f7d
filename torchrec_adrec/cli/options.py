"""Options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of settings. Default: those that the run already has.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that replace those of the file, as train.batch_size=4096.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", help="Folder of the run. It holds one folder for each stage."
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Print the sharding plan of every table as well."
    ),
]
