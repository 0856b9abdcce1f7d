"""Raw rows with their numbers, and the sorting of good rows from bad ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.bad_rows import BadRows

SHOWN = 40  # characters of a bad value


@dataclass(frozen=True)
class RawRows:
    """Some rows of a file, as they stand in it.

    Attributes:
        frame: raw values.
        path: the file.
        numbers: (rows,) from 1: of the line in text, of the row in Parquet.
        unit: which of the two.
    """

    frame: pl.DataFrame
    path: Path
    numbers: Int64s
    unit: Literal["line", "row"]


@dataclass(frozen=True)
class ColumnRule:
    """How a column of `DataSet.read` is made.

    Attributes:
        name: the column.
        source: the raw column, for messages.
        value: over the raw frame.
        fault: over the raw frame: true where the row cannot be used.
        expected: in words.
    """

    name: str
    source: str
    value: pl.Expr
    fault: pl.Expr
    expected: str


def good_rows(
    rows: RawRows, columns: Sequence[ColumnRule], bad: BadRows
) -> pl.DataFrame:
    """The columns of the rows without a fault; all other rows are told to `bad`."""
    faults = rows.frame.select(c.fault.fill_null(False).alias(c.name) for c in columns)
    faulty = faults.select(pl.any_horizontal(pl.all())).to_series()
    for i in faulty.arg_true().to_list():
        column = next(c for c in columns if faults[c.name][i])
        tell(bad, rows, i, _reason(column, rows.frame[column.source][i]))
    return rows.frame.filter(~faulty).select(c.value.alias(c.name) for c in columns)


def tell(bad: BadRows, rows: RawRows, i: int, reason: str) -> None:
    """Count row `i` as bad. A row of Parquet is called so: it has no lines."""
    number = int(rows.numbers[i])
    where = f"row {number}: " if rows.unit == "row" else ""
    bad.add(str(rows.path), number, where + reason)


def _reason(column: ColumnRule, value: object) -> str:
    if value is None:
        return f"{column.source} is missing, expected {column.expected}"
    shown = repr(value)[:SHOWN]
    return f"{column.source} is {shown}, expected {column.expected}"
