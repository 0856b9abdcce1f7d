"""Options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file; default: config.yaml of the run."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that replace the file's, as train.batch_size=4096.",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
