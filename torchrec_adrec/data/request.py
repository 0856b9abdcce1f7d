"""The user of a request: raw values by column, checked and never guessed."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import polars as pl

from torchrec_adrec.data.column import Column, JaggedColumn, RawColumns
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, Side

NUMBER = r"[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?"
T = TypeVar("T")
RawUser = Mapping[str, int | float | str | Sequence[str] | None]


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
    kinds, lists = _columns_of(schema)
    _check_names(user, schema)
    scalars: RawColumns = {
        name: _column([_READERS[kind](name, user.get(name))], kind)
        for name, kind in kinds.items()
    }
    return scalars | {
        name: JaggedColumn.of(_lists([_list(name, user.get(name))])) for name in lists
    }


def raw_users(rows: pl.DataFrame, schema: Schema) -> RawColumns:
    """Make the raw columns of many users, of the same values as `raw_user`'s.

    Args:
        rows: a user each; a column that is absent or null is a missing value.
        schema: of the data that the model was trained on.

    Raises:
        BadRowError: names the first row with a value of the wrong kind.
        DataError: a column that no user feature is made of.
    """
    kinds, lists = _columns_of(schema)
    _check_names(rows.columns, schema)
    raw: RawColumns = {}
    for name, kind in kinds.items():
        if name in rows.columns:
            raw[name] = _scalars(rows[name], kind)
        else:
            raw[name] = _column([None] * len(rows), kind)
    for name in lists:
        values = rows[name] if name in rows.columns else [None] * len(rows)
        read = [_in_row(row, _list, name, value) for row, value in enumerate(values)]
        raw[name] = JaggedColumn.of(_lists(read))
    return raw


def raw_ads(rows: pl.DataFrame, schema: Schema) -> RawColumns:
    """Make the raw columns of ads, of the same values as those of users.

    Args:
        rows: an ad each. Every column of the ad's side must be there, unlike a user's:
            one that was forgotten would change the vectors of all.
        schema: of the data.

    Raises:
        BadRowError: names the first row with a value of the wrong kind.
        DataError: a column is missing or unknown.
    """
    kinds = scalar_kinds(schema, Side.AD)
    if set(rows.columns) != set(kinds):
        raise DataError(
            f"the columns are {sorted(rows.columns)}, expected those of an ad:"
            f" {sorted(kinds)}"
        )
    return {name: _scalars(rows[name], kind) for name, kind in kinds.items()}


class BadRowError(DataError):
    """A value of the wrong kind in one of many rows."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(f"row {row}: {message}")
        self.row, self.message = row, message


def scalar_kinds(schema: Schema, side: Side) -> dict[str, str]:
    """Return the kind of each raw column of a side that holds one value per row."""
    kinds = {f.source: "number" for f in schema.numbers_of(side)}
    return kinds | {f.source: f.kind for f in schema.sparse_of(side)}


def _columns_of(schema: Schema) -> tuple[dict[str, str], list[str]]:
    """Return the kind of each scalar column of a user, and the list columns."""
    lists = [f.source for f in schema.sequences_of(Side.USER)]
    return scalar_kinds(schema, Side.USER), lists


def _check_names(names: Iterable[str], schema: Schema) -> None:
    kinds, lists = _columns_of(schema)
    unknown = sorted(set(names) - set(kinds) - set(lists))
    if unknown:
        raise DataError(
            f"unknown user columns {unknown}; expected some of {[*kinds, *lists]}"
        )


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


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "hex": _hex,
    "text": _text,
    "number": _number,
}
DTYPES = {"hex": pl.UInt32(), "text": pl.String(), "number": pl.Float64()}


def _list(name: str, value: Any) -> list[str]:
    items = [] if value is None else value
    items = items.to_list() if isinstance(items, pl.Series) else items
    if not isinstance(items, list) or not all(isinstance(x, str) for x in items):
        raise _refusal(name, value, "a list of texts, the latest last")
    return [x for x in items if x]  # an empty text is no id, as in a file


def _column(values: list[Any], kind: str) -> Column:
    return Column.of(pl.Series(values, dtype=DTYPES[kind]))


def _lists(values: list[list[str]]) -> pl.Series:
    return pl.Series(values, dtype=pl.List(pl.String()))


def _in_row(row: int, read: Callable[[str, Any], T], name: str, value: Any) -> T:
    try:
        return read(name, value)
    except DataError as error:
        raise BadRowError(row, str(error)) from None


def _refusal(name: str, value: Any, expected: str) -> DataError:
    return DataError(f"{name} is {value!r}, expected {expected}, or null")
