"""Raw rows with their line numbers, and how good rows are told from bad ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """How a column of `DataSet.read` is made of a raw one.

    Attributes:
        name: the column.
        source: the raw column, for messages.
        value: expression over the raw frame.
        fault: expression over the raw frame, true where the row cannot be used.
        expected: the values that can be used, in words.
    """

    name: str
    source: str
    value: pl.Expr
    fault: pl.Expr
    expected: str


def good_rows(
    rows: RawRows, columns: Sequence[ColumnRule], bad: BadRows
) -> pl.DataFrame:
    """Make the columns of the rows without a fault; count all other rows in `bad`.

    Args:
        rows: as they stand in the file.
        columns: the rules of all columns.
        bad: is given the first fault of each bad row.
    """
    faults = rows.frame.select(c.fault.fill_null(False).alias(c.name) for c in columns)
    faulty = faults.select(pl.any_horizontal(pl.all())).to_series()
    # One reason a row, that of its first fault: good and bad rows add up to all rows.
    for i in faulty.arg_true().to_list():
        column = next(c for c in columns if faults[c.name][i])
        _add_bad(bad, rows, i, _reason(column, rows.frame[column.source][i]))
    return rows.frame.filter(~faulty).select(c.value.alias(c.name) for c in columns)


def keep_numbers(rows: RawRows, name: str) -> tuple[RawRows, ColumnRule]:
    """The rows with their numbers as a column more, and the rule that keeps it."""
    frame = rows.frame.with_columns(pl.Series(name, rows.numbers))
    rule = ColumnRule(name, name, pl.col(name), pl.lit(False), "a number")
    return replace(rows, frame=frame), rule


def _add_bad(bad: BadRows, rows: RawRows, i: int, reason: str) -> None:
    """Count row `i` as bad."""
    number = int(rows.numbers[i])
    # Parquet has no lines: the message says that its number is that of a row.
    where = f"row {number}: " if rows.unit == "row" else ""
    bad.add(str(rows.path), number, where + reason)


def _reason(column: ColumnRule, value: object) -> str:
    if value is None:
        return f"{column.source} is missing, expected {column.expected}"
    text = repr(value)[:SHOWN]
    return f"{column.source} is {text}, expected {column.expected}"
