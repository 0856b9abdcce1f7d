"""The user of a request: raw values by column, checked and never guessed."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import polars as pl

from torchrec_adrec.data.column import Column, RawColumns, column_of
from torchrec_adrec.data.vectors import COMPONENT
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, Side

NUMBER = r"[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?"
T = TypeVar("T")
Reader = Callable[[str, Any], Any]  # of a column's name and a raw value
RawValue = int | float | str | Sequence[str] | Sequence[float] | None
RawUser = Mapping[str, RawValue]


def raw_user(user: RawUser, schema: Schema) -> RawColumns:
    """Make the user's raw columns, of one row.

    A request is one of `example_users.json`, as `{"country": "NL", "age": 34,
    "history": ["a2", "a1"]}`.

    Args:
        user: a column that is absent or None is a missing value.
        schema: of the data that the model was trained on.

    Raises:
        DataError: a column that no user feature is made of, or a value of the wrong
            kind.
    """
    _check_names(user, schema)
    raw: RawColumns = {
        name: Column.of_one(_READERS[kind](name, user.get(name)), DTYPES[kind])
        for name, kind in scalar_kinds(schema, Side.USER).items()
    }
    for name, (read, dtype) in _readers(schema, Side.USER).items():
        value = read(name, user.get(name))
        raw[name] = column_of(pl.Series([value], dtype=dtype))
    return raw


def raw_users(rows: pl.DataFrame, schema: Schema) -> RawColumns:
    """Make the raw columns of many users, of the same values as `raw_user`'s.

    Args:
        rows: a user each; a column that is absent or null is a missing value.
        schema: of the data that the model was trained on.

    Raises:
        BadRowError: names the first row with a value of the wrong kind.
        DataError: a column that no user feature is made of.
    """
    _check_names(rows.columns, schema)
    names = column_kinds(schema, Side.USER)
    absent = [pl.Series(n, [None] * len(rows)) for n in names if n not in rows.columns]
    return _raw_columns(rows.with_columns(absent), schema, Side.USER)


def _raw_columns(rows: pl.DataFrame, schema: Schema, side: Side) -> RawColumns:
    """Read the columns of a side, all of which are there."""
    raw: RawColumns = {
        name: _scalars(rows[name], kind)
        for name, kind in scalar_kinds(schema, side).items()
    }
    for name, (read, dtype) in _readers(schema, side).items():
        values = [_in_row(i, read, name, x) for i, x in enumerate(rows[name])]
        raw[name] = column_of(pl.Series(values, dtype=dtype))
    return raw


def raw_ads(rows: pl.DataFrame, schema: Schema) -> RawColumns:
    """Make the raw columns of ads, of the same values as those of users.

    Args:
        rows: an ad each. Every column of the ad's side must be there, unlike a user's:
            one that was forgotten would change the vectors of all. Sets and vectors
            are lists.
        schema: of the data.

    Raises:
        BadRowError: names the first row with a value of the wrong kind.
        DataError: a column is missing or unknown.
    """
    kinds = column_kinds(schema, Side.AD)
    if set(rows.columns) != set(kinds):
        raise DataError(
            f"the columns are {sorted(rows.columns)}, expected those of an ad:"
            f" {sorted(kinds)}"
        )
    return _raw_columns(rows, schema, Side.AD)


class BadRowError(DataError):
    """A value of the wrong kind in one of many rows."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(f"row {row}: {message}")
        self.row, self.message = row, message


def scalar_kinds(schema: Schema, side: Side) -> dict[str, str]:
    """Return the kind of each raw column of a side that is one id or number."""
    kinds = {f.source: "number" for f in schema.numbers_of(side)}
    return kinds | {f.source: f.kind for f in schema.sparse_of(side)}


def column_kinds(schema: Schema, side: Side) -> dict[str, str]:
    """Return the kind of each raw column of a side."""
    lists = {
        f.source: "sequence" if f.ordered else "list" for f in schema.sequences_of(side)
    }
    vectors = {
        f.source: "text" if f.encoder else "vector" for f in schema.vectors_of(side)
    }
    return scalar_kinds(schema, side) | lists | vectors


def _readers(schema: Schema, side: Side) -> dict[str, tuple[Reader, pl.DataType]]:
    """Return what reads each raw column of lists, vectors or prose, and its type."""
    readers: dict[str, tuple[Reader, pl.DataType]] = {
        f.source: (_list if f.ordered else partial(_set, f.max_length), LISTS)
        for f in schema.sequences_of(side)
    }
    return readers | {
        f.source: (_prose, pl.String())
        if f.encoder
        else (partial(_vector, f.size), pl.Binary())
        for f in schema.vectors_of(side)
    }


def _check_names(names: Iterable[str], schema: Schema) -> None:
    kinds = column_kinds(schema, Side.USER)
    unknown = sorted(set(names) - set(kinds))
    if unknown:
        raise DataError(f"unknown user columns {unknown}; expected some of {[*kinds]}")


def _scalars(values: pl.Series, kind: str) -> Column:
    """Read a column, each distinct value once."""
    if values.dtype.is_nested():  # lists, say: the first one is refused
        _in_row(0, _READERS[kind], values.name, values.head(1).to_list()[0])
    column = Column.of(values)
    read = []
    for code, value in enumerate(column.values):
        try:
            read.append(_READERS[kind](values.name, value))
        except DataError as error:
            row = int(np.argmax(column.codes == code))
            raise BadRowError(row, str(error)) from None
    # Two texts may be one number: numbered again, by what was read.
    table = pl.Series([*read, None], dtype=DTYPES[kind])
    places = np.where(column.codes < 0, len(read), column.codes)
    return Column.of(table.gather(places))


def _hex(name: str, value: Any) -> int | None:
    # A hash must be text: the number 12345678 could be meant in either base, and a
    # guess could be wrong without any error.
    if value in (None, ""):
        return None
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{8}", value):
        return int(value, 16)
    raise _refusal(name, value, "eight hexadecimal digits as text")


def _text(name: str, value: Any) -> str | None:
    # An id must be text: 7 and 7.0 are one number and two texts.
    if value is None or isinstance(value, str):
        return value or None
    raise _refusal(name, value, "text")


def _number(name: str, value: Any) -> float | None:
    if value in (None, ""):
        return None
    if isinstance(value, str) and re.fullmatch(NUMBER, value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(name, value, "a number")
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) >= 2**63):
        raise _refusal(name, value, "a finite number, an integer of 64 bits")
    return float(value)


_READERS: dict[str, Reader] = {
    "hex": _hex,
    "text": _text,
    "number": _number,
}
LISTS = pl.List(pl.String())
DTYPES = {"hex": pl.UInt32(), "text": pl.String(), "number": pl.Float64()}


def _list(
    name: str, value: Any, expected: str = "a list of texts, the latest last"
) -> list[str]:
    items = [] if value is None else value
    items = items.to_list() if isinstance(items, pl.Series) else items
    if not isinstance(items, list) or not all(isinstance(x, str) for x in items):
        raise _refusal(name, value, expected)
    return [x for x in items if x]  # an empty text is no id, as in a file


def _set(most: int, name: str, value: Any) -> list[str]:
    expected = f"a list of at most {most} texts"
    ids = sorted(set(_list(name, value, expected)))
    if len(ids) > most:  # which of them to drop would be a matter of chance
        raise _refusal(name, value, expected)
    return ids


def _prose(name: str, value: Any) -> str | None:
    # As `data.adapters.values` reads it: blanks around it make no other vector.
    text = _text(name, value)
    return text and (text.strip() or None)


def _vector(size: int, name: str, value: Any) -> bytes | None:
    numbers = value.to_list() if isinstance(value, pl.Series) else value
    if numbers is None:
        return None
    is_list = isinstance(numbers, list) and len(numbers) == size
    if not is_list or not all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in numbers
    ):
        raise DataError(f"{name}: expected a list of {size} numbers, or null")
    with np.errstate(over="ignore"):  # refused below
        components = np.array(numbers, dtype=np.float64).astype(COMPONENT)
    if not np.isfinite(components).all():
        raise DataError(f"{name}: expected finite numbers, of 32 bits")
    return components.tobytes()


def _in_row(row: int, read: Callable[[str, Any], T], name: str, value: Any) -> T:
    try:
        return read(name, value)
    except DataError as error:
        raise BadRowError(row, str(error)) from None


def _refusal(name: str, value: Any, expected: str) -> DataError:
    return DataError(f"{name} is {value!r}, expected {expected}, or null")
