"""Options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

from torchrec_adrec.errors import ConfigError

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
To = Annotated[Path | None, typer.Option("--to", help="Parquet file that is written.")]
Key = Annotated[
    str | None,
    typer.Option(
        help="Column of the users' file that names them and is no feature; it is"
        " written too."
    ),
]
RankBy = Annotated[
    str | None,
    typer.Option(
        help="Order by this formula, as 'click * value'. Default: recommend.rank_by."
    ),
]
User = Annotated[
    str,
    typer.Option(
        help="JSON file of raw user columns, or the number of an example user."
    ),
]
Top = Annotated[
    int | None, typer.Option(min=1, help="Number of ads. Default: recommend.top.")
]
Condition = Annotated[
    str | None,
    typer.Option(help="Only ads whose raw columns meet this condition, in SQL."),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, int8, compiled or auto. Default: recommend.engine."
    ),
]


Bundled = Annotated[
    Path,
    typer.Option(
        "--out", "--bundle", help="Folder of the run, or a bundle: a folder or .tar."
    ),
]


def written_to(path: Path | None, option: str) -> Path:
    """Return the file that a command is to write.

    Raises:
        ConfigError: none was named, or it could not be put there.
    """
    if path is None:
        raise ConfigError(f"{option} needs --to FILE, the Parquet file to write")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ConfigError(f"--to {path}: expected a file in a folder that is there")
    return path
