"""The user of a request: raw values by column, checked and never guessed."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from torchrec_adrec.data.column import Column, JaggedColumn, RawColumns
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema, SequenceFeature, Side

NUMBER = r"[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?"
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
    kinds = scalar_kinds(schema, Side.USER)
    lists = {f.source: f for f in schema.sequences_of(Side.USER)}
    unknown = sorted(set(user) - set(kinds) - set(lists))
    if unknown:
        raise DataError(
            f"unknown user columns {unknown}; expected some of {[*kinds, *lists]}"
        )
    scalars: RawColumns = {
        name: _READERS[kind](name, user.get(name)) for name, kind in kinds.items()
    }
    return scalars | {n: _list(f, user.get(n)) for n, f in lists.items()}


def scalar_kinds(schema: Schema, side: Side) -> dict[str, str]:
    """Return the kind of each raw column of a side that holds one value per row."""
    kinds = {f.source: "number" for f in schema.numbers_of(side)}
    return kinds | {f.source: f.kind for f in schema.sparse_of(side)}


def _hex(name: str, value: Any) -> Column:
    # A hash must be text: the number 12345678 could be meant in either base, and a
    # guess could be wrong without any error.
    if value in (None, ""):
        return _one(None, pl.UInt32())
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{8}", value):
        return _one(int(value, 16), pl.UInt32())
    raise _refusal(name, value, "eight hexadecimal digits as text")


def _text(name: str, value: Any) -> Column:
    # An id must be text: 7 and 7.0 are one number and two texts.
    if value is None or isinstance(value, str):
        return _one(value or None, pl.String())
    raise _refusal(name, value, "text")


def _number(name: str, value: Any) -> Column:
    if value in (None, ""):
        return _one(None, pl.Float64())
    if isinstance(value, str) and re.fullmatch(NUMBER, value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refusal(name, value, "a number")
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) >= 2**63):
        raise _refusal(name, value, "a finite number, an integer of 64 bits")
    return _one(float(value), pl.Float64())


_READERS = {"hex": _hex, "text": _text, "number": _number}


def _list(feature: SequenceFeature, value: Any) -> JaggedColumn:
    items = [] if value is None else value
    if not isinstance(items, list) or not all(isinstance(x, str) for x in items):
        raise _refusal(feature.source, value, "a list of texts, the latest last")
    ids = [x for x in items if x]  # an empty text is no id, as in a file
    return JaggedColumn.of(pl.Series([ids], dtype=pl.List(pl.String())))


def _one(value: Any, dtype: pl.DataType) -> Column:
    return Column.of(pl.Series([value], dtype=dtype))


def _refusal(name: str, value: Any, expected: str) -> DataError:
    return DataError(f"{name} is {value!r}, expected {expected}, or null")
