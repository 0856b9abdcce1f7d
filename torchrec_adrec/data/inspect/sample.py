"""The first rows of a file, as text or, in Parquet, with their types."""

from dataclasses import dataclass
from itertools import islice
from math import log2
from pathlib import Path

import polars as pl

from torchrec_adrec.data.adapters import columnar
from torchrec_adrec.data.inspect.text_layout import TextLayout, text_layout
from torchrec_adrec.errors import ConfigError, DataError

ROWS = 100_000
TRAIN, STEPS = (
    0.8,
    75,
)  # share of the rows that train, and steps that they make at least
SMALLEST, LARGEST = 32, 256  # batch sizes that are proposed


@dataclass(frozen=True)
class Sample:
    """The first rows of a file.

    Attributes:
        path: the file.
        layout: of its text; None for Parquet.
        rows: one column each; empty text is null.
        is_whole: whether the file has no further rows.
        uneven: lines with too few or too many fields, which are left out.
    """

    path: Path
    layout: TextLayout | None
    rows: pl.DataFrame
    is_whole: bool
    uneven: int = 0

    @property
    def batch_size(self) -> int | None:
        """Rows of a step, so that few rows make some steps; None: the default will do.

        With 18 steps of 256 rows, towers and ranker of 6,000 rows stayed at chance.
        """
        if not self.is_whole:
            return None
        rows = TRAIN * len(self.rows) / STEPS
        return int(min(max(2 ** int(log2(max(rows, 1))), SMALLEST), LARGEST))


def read_sample(path: Path, count: int = ROWS) -> Sample:
    """Read the first rows of a CSV, TSV or Parquet file.

    Raises:
        ConfigError: there is no such file.
        DataError: it is no table, or has no rows.
    """
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    if path.suffix == ".parquet":
        columnar.types(path)  # says in a line if it is none
        rows = pl.read_parquet(path, n_rows=count + 1)
        is_whole = len(rows) <= count
        sample = Sample(path, None, _with_lists(rows.head(count)), is_whole)
    else:
        sample = _read_text(path, count)
    if not len(sample.rows):
        raise DataError(f"{path}: expected rows, found none below the header")
    return sample


def _with_lists(rows: pl.DataFrame) -> pl.DataFrame:
    """The same rows, where lists of one fixed size are lists like all others."""
    return rows.with_columns(
        column.arr.to_list() for column in rows if isinstance(column.dtype, pl.Array)
    )


def _read_text(path: Path, count: int) -> Sample:
    layout = text_layout(path)
    lines = list(islice(layout.rows(path), count + 1))
    width = len(layout.columns)
    even = [line for line in lines[:count] if len(line) == width]
    types = dict.fromkeys(layout.columns, pl.String)
    rows = pl.DataFrame(even, schema=types, orient="row")
    rows = rows.with_columns(pl.all().replace("", None))
    uneven = min(len(lines), count) - len(even)
    return Sample(path, layout, rows, len(lines) <= count, uneven)
