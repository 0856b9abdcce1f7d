"""Parquet as raw data: its column types, and its rows in bounded memory."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_adrec.data.adapters.rows import RawRows
from torchrec_adrec.errors import ConfigError, DataError, SchemaError

# A decoded value, texts and lists included. An id takes 8 bytes, but a guess that is
# too small would hold far more than `chunk_bytes`.
VALUE_BYTES = 64


def types(path: Path) -> pl.Schema:
    """The names and types of a file's columns.

    Raises:
        ConfigError: the file cannot be read.
        DataError: it is no Parquet.
    """
    with _open(path) as file:
        empty = file.schema_arrow.empty_table()
    return cast(pl.DataFrame, pl.from_arrow(empty)).schema


def batches(path: Path, names: Sequence[str], chunk_bytes: int) -> Iterator[RawRows]:
    """Read the rows in order, about `chunk_bytes` of decoded values at a time.

    Args:
        path: a Parquet file.
        names: the columns that are read.
        chunk_bytes: decoded values held at a time.

    Raises:
        DataError: the file is damaged.
    """
    first = 1
    with _open(path) as file:
        count = max(1, chunk_bytes // (VALUE_BYTES * len(names)))
        try:
            for batch in file.iter_batches(batch_size=count, columns=list(names)):
                frame = cast(pl.DataFrame, pl.from_arrow(batch)).select(names)
                numbers = np.arange(first, first + len(frame))
                yield RawRows(frame, path, numbers, "row")
                first += len(frame)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: damaged after row {first - 1}, restore the file: {error}"
            ) from None


def require(
    path: Path, columns: Collection[str], names: Collection[str], elsewhere: str = ""
) -> None:
    """Refuse a file that lacks a column.

    Args:
        path: for the message.
        columns: those of the file.
        names: those that it must have.
        elsewhere: what else is to be said of columns that were found elsewhere.

    Raises:
        SchemaError: names the file, the columns that it lacks and those it has.
    """
    missing = [name for name in names if name not in columns]
    if missing:
        raise SchemaError(
            f"{path}: no column {', '.join(missing)}; found"
            f" {', '.join(columns)}{elsewhere}"
        )


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no Parquet file: {error}") from None
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"data.raw: cannot read {path}: {reason}") from None
