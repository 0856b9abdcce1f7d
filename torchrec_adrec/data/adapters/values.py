"""A raw column of any type -> a column of `dataset.raw_types`, with its faults."""

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from torchrec_adrec.config.table import (
    FeatureColumn,
    HexColumn,
    LabelColumn,
    NumberColumn,
    SequenceColumn,
    TimeColumn,
)
from torchrec_adrec.data.adapters.rows import ColumnRule
from torchrec_adrec.errors import SchemaError

HEX = r"^[0-9a-fA-F]{8}$"
# Lists that a program printed: ['101', '102'], [1 2], {1,2}, and quoted ids.
PRINTED = r"""(?s)^\s*(\[.*\]|\(.*\)|\{.*\})\s*$"""
QUOTED = r"""^(".*"|'.*'),?$"""
DAY, SECOND, OFFSET = "%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%:z"


@dataclass(frozen=True)
class Given:
    """A column of a file and its type; `missing` texts mean no value."""

    path: Path
    source: str
    type: pl.DataType
    missing: tuple[str, ...]

    def value(self) -> pl.Expr:
        """The column, null where there is no value."""
        column = pl.col(self.source)
        if isinstance(self.type, pl.String | pl.Categorical | pl.Enum):
            column = column.cast(pl.String)
            return pl.when(~column.is_in(self.missing)).then(column)
        return column.fill_nan(None) if self.type.is_float() else column

    @property
    def is_empty(self) -> bool:
        """Whether the file has no value in the column, so that it has no type."""
        return self.type == pl.Null()

    def refused(self, expected: str) -> SchemaError:
        """The error of a type that has no reading."""
        return SchemaError(
            f"{self.path}: column {self.source} is {self.type}, expected {expected}"
        )


def feature(name: str, given: Given, settings: FeatureColumn) -> ColumnRule:
    """A feature of any kind.

    Raises:
        SchemaError: the column's type cannot be read as that kind.
    """
    if isinstance(settings, NumberColumn):
        return _number(name, given)
    if isinstance(settings, SequenceColumn):
        return _sequence(name, given, settings)
    return _hex(name, given) if isinstance(settings, HexColumn) else _text(name, given)


def label(name: str, given: Given, settings: LabelColumn, needed: bool) -> ColumnRule:
    """Float32; a value above `max_value` is cut to it, a negative one is a fault.

    Args:
        name: of the label.
        given: its column.
        settings: its kind.
        needed: a row without it is a fault.
    """
    number = _float(given, "0 and 1" if settings.max_value is None else "numbers")
    max_value = settings.max_value
    from_zero = number.is_finite() & (number >= 0)
    good = number.is_in([0.0, 1.0]) if max_value is None else from_zero
    fault = given.value().is_not_null() & ~good.fill_null(False)
    if needed:
        fault = fault | given.value().is_null()
    cut = number.clip(upper_bound=max_value) if max_value is not None else number
    expected = "0 or 1" if max_value is None else "a number from 0"
    return ColumnRule(name, given.source, cut.cast(pl.Float32), fault, expected)


def needed_text(name: str, given: Given) -> ColumnRule:
    """Text that must be there in every row."""
    return needed(_text(name, given))


def needed(column: ColumnRule) -> ColumnRule:
    """The same ids, where a row without one is a fault."""
    fault = column.fault | column.value.is_null()
    return replace(column, fault=fault, expected=f"an id ({column.expected})")


def time(name: str, given: Given, settings: TimeColumn) -> ColumnRule:
    """Int64: milliseconds since 1970 of dates, times and ISO text; integers as such."""
    value = _integers(given) if settings.kind == "number" else _moment(given)
    expected = "an integer" if settings.kind == "number" else "a date and time (ISO)"
    return ColumnRule(name, given.source, value, value.is_null(), expected)


def _text(name: str, given: Given) -> ColumnRule:
    kind = given.type
    simple = kind.is_integer() or kind in (pl.Boolean(), pl.Date(), pl.Null())
    if not (simple or isinstance(kind, pl.String | pl.Categorical | pl.Enum)):
        raise given.refused("text or integers: 7.0 would be another id than 7")
    value = given.value().cast(pl.String)
    return ColumnRule(name, given.source, value, pl.lit(False), "text")


def _hex(name: str, given: Given) -> ColumnRule:
    if not (given.type == pl.String() or given.is_empty):
        raise given.refused("text of eight hexadecimal digits")
    text = given.value().cast(pl.String)
    number = text.str.to_integer(base=16, strict=False, dtype=pl.UInt32)
    value = pl.when(text.str.contains(HEX)).then(number)
    fault = text.is_not_null() & value.is_null()
    return ColumnRule(name, given.source, value, fault, "eight hexadecimal digits")


def _number(name: str, given: Given) -> ColumnRule:
    value = _float(given, "numbers")
    fault = given.value().is_not_null() & ~value.is_finite().fill_null(False)
    return ColumnRule(name, given.source, value, fault, "a finite number or nothing")


def _float(given: Given, expected: str) -> pl.Expr:
    kind = given.type
    if not (kind.is_numeric() or isinstance(kind, pl.Boolean | pl.String | pl.Null)):
        raise given.refused(expected)
    return given.value().cast(pl.Float64, strict=False)


def _sequence(name: str, given: Given, settings: SequenceColumn) -> ColumnRule:
    ids, fault, expected = _divided(given, settings)
    # Between two separators stands no id; a list of none is no history.
    there = pl.element().drop_nulls().cast(pl.String)
    ids = ids.list.eval(there.filter(there != "")).list.tail(settings.max_length)
    value = pl.when(ids.list.len() > 0).then(ids)
    return ColumnRule(name, given.source, value, fault, expected)


def _divided(given: Given, settings: SequenceColumn) -> tuple[pl.Expr, pl.Expr, str]:
    """The lists, what is wrong with them, and what was expected."""
    kind, value = given.type, given.value()
    if kind == pl.String():
        ids = value.str.split(settings.separator)
        # Of `101, 102`, divided by a comma, the second id is not " 102".
        ids = ids.list.eval(pl.element().str.strip_chars())
        printed = value.str.contains(PRINTED)
        quoted = ids.list.eval(pl.element().str.contains(QUOTED)).list.any()
        expected = (
            f"ids divided by {settings.separator!r} alone, without brackets or quotes"
            " (or a list in Parquet)"
        )
        return ids, printed | quoted, expected
    if given.is_empty:
        return value.cast(pl.List(pl.String)), pl.lit(False), "ids"
    if isinstance(kind, pl.List) and (
        kind.inner in (pl.String(), pl.Null()) or kind.inner.is_integer()
    ):
        return value, pl.lit(False), "ids"
    raise given.refused("a list of text or of integers, or divided text")


def _integers(given: Given) -> pl.Expr:
    if not (given.type.is_integer() or given.type == pl.String() or given.is_empty):
        raise given.refused("integers (time.kind: number)")
    return given.value().cast(pl.Int64, strict=False)


def _moment(given: Given) -> pl.Expr:
    if isinstance(given.type, pl.Date | pl.Datetime | pl.Null):
        return given.value().cast(pl.Datetime("ms")).dt.epoch("ms")
    if given.type != pl.String():
        raise given.refused("dates, times or ISO text; or set time.kind: number")
    text = given.value().str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
    local = [
        text.str.to_datetime(form, strict=False, time_unit="ms").dt.epoch("ms")
        for form in (SECOND, DAY)
    ]
    offset = text.str.to_datetime(
        OFFSET, strict=False, time_unit="ms", time_zone="UTC"
    ).dt.epoch("ms")
    return pl.coalesce(offset, *local)
