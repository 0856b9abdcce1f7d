"""A small copy of a raw file, to try a configuration on."""

import gzip
from itertools import islice
from pathlib import Path

import polars as pl

ROWS = 100_000


def write_first_rows(raw: Path, folder: Path) -> Path:
    """Copy the first rows of a file that an adapter can read; returns the copy.

    Lines are copied as bytes, so that whatever is wrong with them is seen.
    """
    if raw.suffix == ".parquet":
        target = folder / raw.name
        pl.read_parquet(raw, n_rows=ROWS).write_parquet(target)
        return target
    is_packed = raw.suffix == ".gz"
    target = folder / (raw.stem if is_packed else raw.name)
    with (
        gzip.open(raw) if is_packed else raw.open("rb") as source,
        target.open("wb") as file,
    ):
        file.writelines(islice(source, ROWS + 1))
    return target
