"""The files of an own table, in Parquet or text: column names, types and rows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import polars as pl

from torchrec_adrec.data.adapters import columnar, delimited
from torchrec_adrec.data.adapters.rows import RawRows
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import ConfigError, SchemaError

Types = Mapping[str, pl.DataType]


def types(path: Path, names: Sequence[str] = ()) -> Types:
    """The columns of a file with their types; those of text are all String.

    Args:
        path: the file.
        names: its columns, if it is text without a header.

    Raises:
        ConfigError: the file is of unknown kind, or cannot be read.
    """
    if path.suffix == ".parquet":
        return dict(columnar.types(path))
    if delimited.is_text(path):
        return dict.fromkeys(names or delimited.header(path), pl.String())
    raise ConfigError(
        f"data.raw: {path}: expected .parquet, .csv, .tsv, .dat, or the last three"
        " with .gz"
    )


def batches(
    path: Path,
    names: Sequence[str],
    chunk_bytes: int,
    bad: BadRows,
    all_names: Sequence[str] = (),
) -> Iterator[RawRows]:
    """Read the rows of a file in order, about `chunk_bytes` at a time.

    Args:
        path: the file.
        names: the columns that are read.
        chunk_bytes: text, or decoded values, held at a time.
        bad: counts the lines that cannot be divided into columns.
        all_names: those of all columns, if the file is text without a header.
    """
    if path.suffix == ".parquet":
        return columnar.batches(path, names, chunk_bytes)
    return delimited.batches(path, names, chunk_bytes, bad, all_names)


def refuse_unused(
    path: Path, names: Collection[str], used: Collection[str], ignore: Sequence[str]
) -> None:
    """Refuse a file with a column that is neither used nor ignored.

    A column that is forgotten by a slip costs quality and nobody would see it.

    Args:
        path: the file.
        names: its columns.
        used: those that are read.
        ignore: patterns of those that are not meant to be.

    Raises:
        SchemaError: names the file and the columns.
    """
    unused = [
        name
        for name in names
        if name not in used and not any(fnmatch(name, p) for p in ignore)
    ]
    if unused:
        raise SchemaError(
            f"{path}: columns {unused} are not used; make them features, or name them"
            " in data.table.ignore"
        )
