"""Rules that turn a raw column of any type into one of `dataset.raw_types`."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl

from torchrec_adrec.config.table_columns import (
    EmbeddedTextColumn,
    FeatureColumn,
    HexColumn,
    ListColumn,
    NumberColumn,
    SequenceColumn,
    TimeColumn,
    VectorColumn,
)
from torchrec_adrec.data.adapters.labels import label_column
from torchrec_adrec.data.adapters.rows import ColumnRule
from torchrec_adrec.data.vectors import to_bytes
from torchrec_adrec.errors import SchemaError
from torchrec_adrec.schema import Label

HEX = r"^[0-9a-fA-F]{8}$"
# Lists that a program printed: ['101', '102'], [1 2], {1,2}, and quoted ids. Divided at
# their separators they would give ids such as "['101'" that no request ever has.
PRINTED = r"""(?s)^\s*(\[.*\]|\(.*\)|\{.*\})\s*$"""
QUOTED = r"""^(".*"|'.*'),?$"""
DAY, SECOND, OFFSET = "%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%:z"


@dataclass(frozen=True)
class RawColumn:
    """A column of a file.

    Attributes:
        path: the file.
        source: the column.
        type: of its values in the file.
        missing: texts that mean no value.
    """

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
        """The error of a type that cannot be read as what was expected."""
        return SchemaError(
            f"{self.path}: column {self.source} is {self.type}, expected {expected}"
        )


def feature(name: str, raw: RawColumn, settings: FeatureColumn) -> ColumnRule:
    """The rule of a feature of any kind.

    Args:
        name: of the feature.
        raw: its column.
        settings: its kind.

    Raises:
        SchemaError: the column's type cannot be read as that kind.
    """
    if isinstance(settings, NumberColumn):
        return _number(name, raw)
    if isinstance(settings, SequenceColumn):
        return _sequence(name, raw, settings)
    if isinstance(settings, ListColumn):
        return _set(name, raw, settings)
    if isinstance(settings, VectorColumn):
        return _vector(name, raw, settings)
    if isinstance(settings, EmbeddedTextColumn):
        return _prose(name, raw)
    return _hex(name, raw) if isinstance(settings, HexColumn) else _text(name, raw)


def label(
    label: Label, raw: RawColumn, required: bool, at_least: float | None = None
) -> ColumnRule:
    """The rule of a label.

    Args:
        label: its kind says which numbers are allowed.
        raw: its column.
        required: whether a row without it is a bad row.
        at_least: the label is whether the column's number is at least this.

    Raises:
        SchemaError: the column's type cannot be read as numbers.
    """
    if at_least is not None:
        number = _float(raw, "numbers")
        # An infinity stays itself, which is neither 0 nor 1: a bad row.
        reached = (number >= at_least).cast(pl.Float64)
        number = pl.when(number.is_finite()).then(reached).otherwise(number)
        expected = "a finite number"
        return label_column(label, raw.source, number, raw.value(), required, expected)
    number = _float(raw, "numbers" if label.rule.is_open else "0 and 1")
    return label_column(label, raw.source, number, raw.value(), required)


def always(name: str) -> ColumnRule:
    """The rule of a label that is 1 in every row and has no column."""
    one = pl.lit(1.0, dtype=pl.Float32)
    return ColumnRule(name, name, one, pl.lit(False), "1")


def required_text(name: str, raw: RawColumn) -> ColumnRule:
    """The rule of text that must not be missing in any row."""
    return required_ids(_text(name, raw))


def required_ids(column: ColumnRule) -> ColumnRule:
    """The same ids, where a row without one is a bad row."""
    fault = column.fault | column.value.is_null()
    return replace(column, fault=fault, expected=f"an id ({column.expected})")


def probability(name: str, raw: RawColumn) -> ColumnRule:
    """The rule of a probability above 0; a row without one is a bad row."""
    value = _float(raw, "numbers")
    fault = ~((value > 0) & (value <= 1)).fill_null(False)
    return ColumnRule(name, raw.source, value, fault, "a number above 0 and at most 1")


def time(name: str, raw: RawColumn, settings: TimeColumn) -> ColumnRule:
    """The rule of a time, Int64: milliseconds since 1970, or integers as they are.

    Args:
        name: of the column that is made.
        raw: dates, times or ISO text, or with `kind: number` integers of any unit.
        settings: the kind.
    """
    value = _integers(raw) if settings.kind == "number" else _moment(raw)
    expected = "an integer" if settings.kind == "number" else "a date and time (ISO)"
    return ColumnRule(name, raw.source, value, value.is_null(), expected)


def _text(name: str, raw: RawColumn) -> ColumnRule:
    kind = raw.type
    simple = kind.is_integer() or kind in (pl.Boolean(), pl.Date(), pl.Null())
    if not (simple or isinstance(kind, pl.String | pl.Categorical | pl.Enum)):
        raise raw.refused("text or integers: 7.0 would be another id than 7")
    value = raw.value().cast(pl.String)
    return ColumnRule(name, raw.source, value, pl.lit(False), "text")


def _hex(name: str, raw: RawColumn) -> ColumnRule:
    if not (raw.type == pl.String() or raw.is_empty):
        raise raw.refused("text of eight hexadecimal digits")
    text = raw.value().cast(pl.String)
    number = text.str.to_integer(base=16, strict=False, dtype=pl.UInt32)
    value = pl.when(text.str.contains(HEX)).then(number)
    fault = text.is_not_null() & value.is_null()
    return ColumnRule(name, raw.source, value, fault, "eight hexadecimal digits")


def _number(name: str, raw: RawColumn) -> ColumnRule:
    value = _float(raw, "numbers")
    fault = raw.value().is_not_null() & ~value.is_finite().fill_null(False)
    return ColumnRule(name, raw.source, value, fault, "a finite number or nothing")


def _float(raw: RawColumn, expected: str) -> pl.Expr:
    kind = raw.type
    if not (kind.is_numeric() or isinstance(kind, pl.Boolean | pl.String | pl.Null)):
        raise raw.refused(expected)
    # Not strict: text that is no number becomes null, which the callers make a fault.
    return raw.value().cast(pl.Float64, strict=False)


def _sequence(name: str, raw: RawColumn, settings: SequenceColumn) -> ColumnRule:
    ids, fault, expected = _divided(raw, settings.separator)
    ids = _without_empty(ids).list.tail(settings.max_length)
    value = pl.when(ids.list.len() > 0).then(ids)
    return ColumnRule(name, raw.source, value, fault, expected)


def _set(name: str, raw: RawColumn, settings: ListColumn) -> ColumnRule:
    ids, fault, expected = _divided(raw, settings.separator)
    ids = _without_empty(ids).list.unique().list.sort()
    value = pl.when(ids.list.len() > 0).then(ids)
    fault |= (ids.list.len() > settings.max_length).fill_null(False)
    expected = f"at most {settings.max_length} (`max_length`) {expected}"
    return ColumnRule(name, raw.source, value, fault, expected)


def _vector(name: str, raw: RawColumn, settings: VectorColumn) -> ColumnRule:
    size = settings.size
    assert size is not None, "`vectors.with_sizes` has taken it from the data"
    numbers = components(raw, settings.separator)
    is_finite = pl.element().is_finite().fill_null(False)
    good = (numbers.list.len() == size) & numbers.list.eval(is_finite).list.all()
    lists = pl.when(good).then(numbers)
    value = lists.map_batches(partial(to_bytes, size=size), return_dtype=pl.Binary)
    fault = raw.value().is_not_null() & ~good.fill_null(False)
    expected = f"a vector of {size} finite numbers (`size`), or nothing"
    return ColumnRule(name, raw.source, value, fault, expected)


def components(raw: RawColumn, separator: str) -> pl.Expr:
    """The numbers of each row, List(Float32), null in place of what is none.

    Raises:
        SchemaError: the column's type cannot be read as vectors.
    """
    kind, value = raw.type, raw.value()
    if kind == pl.String():
        value = value.str.strip_chars().str.split(separator)
        number = pl.element().str.strip_chars().cast(pl.Float64, strict=False)
        return value.list.eval(number.cast(pl.Float32))
    if isinstance(kind, pl.Array) and kind.inner.is_numeric() and len(kind.shape) == 1:
        return value.cast(pl.List(pl.Float32))
    if isinstance(kind, pl.List) and (kind.inner.is_numeric() or raw.is_empty):
        return value.cast(pl.List(pl.Float32))
    if raw.is_empty:
        return value.cast(pl.List(pl.Float32))
    raise raw.refused("a list of numbers, or divided text")


def _prose(name: str, raw: RawColumn) -> ColumnRule:
    if not (raw.type == pl.String() or raw.is_empty):
        raise raw.refused("text")
    value = raw.value().cast(pl.String).str.strip_chars()
    value = pl.when(value != "").then(value)
    return ColumnRule(name, raw.source, value, pl.lit(False), "text")


def _without_empty(ids: pl.Expr) -> pl.Expr:
    """The ids as text. Two separators in a row have none between them."""
    items = pl.element().drop_nulls().cast(pl.String)
    return ids.list.eval(items.filter(items != ""))


def _divided(raw: RawColumn, separator: str) -> tuple[pl.Expr, pl.Expr, str]:
    """The lists, whether a row's cannot be used, and what was expected, in words."""
    kind, value = raw.type, raw.value()
    if kind == pl.String():
        ids = value.str.split(separator)
        # The second id of `101, 102`, divided by a comma, is "102" and not " 102".
        ids = ids.list.eval(pl.element().str.strip_chars())
        printed = value.str.contains(PRINTED)
        quoted = ids.list.eval(pl.element().str.contains(QUOTED)).list.any()
        expected = (
            f"ids divided by {separator!r} alone, without brackets or quotes"
            " (or a list in Parquet)"
        )
        return ids, printed | quoted, expected
    if raw.is_empty:
        return value.cast(pl.List(pl.String)), pl.lit(False), "ids"
    if isinstance(kind, pl.Array) and len(kind.shape) == 1:
        kind, value = pl.List(kind.inner), value.arr.to_list()
    if isinstance(kind, pl.List) and (
        kind.inner in (pl.String(), pl.Null()) or kind.inner.is_integer()
    ):
        return value, pl.lit(False), "ids"
    raise raw.refused("a list of text or of integers, or divided text")


def _integers(raw: RawColumn) -> pl.Expr:
    if not (raw.type.is_integer() or raw.type == pl.String() or raw.is_empty):
        raise raw.refused("integers (time.kind: number)")
    return raw.value().cast(pl.Int64, strict=False)


def _moment(raw: RawColumn) -> pl.Expr:
    if isinstance(raw.type, pl.Date | pl.Datetime | pl.Null):
        return raw.value().cast(pl.Datetime("ms")).dt.epoch("ms")
    if raw.type != pl.String():
        raise raw.refused("dates, times or ISO text; or set time.kind: number")
    # Every form is tried on every row, because a file may mix them. Text with an offset
    # is a moment; without one it counts as UTC.
    text = raw.value().str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
    local = [
        text.str.to_datetime(form, strict=False, time_unit="ms").dt.epoch("ms")
        for form in (SECOND, DAY)
    ]
    offset = text.str.to_datetime(
        OFFSET, strict=False, time_unit="ms", time_zone="UTC"
    ).dt.epoch("ms")
    return pl.coalesce(offset, *local)
