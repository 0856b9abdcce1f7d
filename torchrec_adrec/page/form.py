"""What a person can set of a user: the columns, their kinds, values to choose from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torchrec_adrec.data.request import RawUser, scalar_kinds
from torchrec_adrec.schema import Schema, Side

Kind = Literal["whole number", "number", "hex", "text", "list"]
EXACT = 2**53  # above it a browser's numbers are no longer exact


@dataclass(frozen=True)
class Field:
    """One raw column of a user.

    Attributes:
        name: of the column.
        kind: what it holds; a number is whole if those of all examples are.
        options: values of the examples, the most frequent first; others are allowed.
    """

    name: str
    kind: Kind
    options: tuple[str, ...] = ()


def fields(schema: Schema, examples: Sequence[RawUser]) -> list[Field]:
    """Return the raw columns of a user: numbers first, then ids, then lists.

    Args:
        schema: of the run.
        examples: raw users, whose values are offered.
    """
    kinds = scalar_kinds(schema, Side.USER)
    kinds |= {f.source: "list" for f in schema.sequences_of(Side.USER)}
    order = ("number", "hex", "text", "list")
    names = sorted(kinds, key=lambda name: order.index(kinds[name]))
    return [_field(name, kinds[name], examples) for name in names]


def _field(name: str, kind: Any, examples: Sequence[RawUser]) -> Field:
    values = [user[name] for user in examples if user.get(name) not in (None, "", [])]
    if kind == "number":
        is_whole = all(isinstance(x, int) and abs(x) < EXACT for x in values)
        return Field(name, "whole number" if values and is_whole else "number")
    items: list[Any] = values
    if kind == "list":
        items = [item for value in items for item in value]
    options = [value for value, _ in Counter(map(str, items)).most_common()]
    return Field(name, kind, tuple(options))
