"""Whether a column of text holds lists, and how they are written."""

import re
from collections import Counter
from dataclasses import dataclass

import polars as pl

from torchrec_adrec.data.inspect.times import MOSTLY

BRACKETED = r"(?s)^\s*[\[({].*[\])}]\s*$"
ID = re.compile(r"^[\w.:/-]{1,40}$")
NAMES = re.compile(
    r"hist|seen|list|tags|genres|topics|categories|keywords|skills|interests|items|ids$"
    r"|prev|recent|last_|viewed"
)
MOST = 5_000  # values that are looked at


COMPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
POINT = re.compile(r"[.eE]")


@dataclass(frozen=True)
class ListForm:
    """How a list is written.

    Attributes:
        brackets: the opening one; empty without.
        separator: between two items; None in Parquet's own lists.
        is_vector: whether the items are the components of a vector and no ids.
    """

    brackets: str
    separator: str | None
    is_vector: bool = False


def list_form(name: str, text: pl.Series) -> ListForm | None:
    """Return how the lists of a column are written; None if these are no lists.

    Args:
        name: of the column, which tells where the values leave it open.
        text: its values, none missing.
    """
    values = text.head(MOST).to_list()
    bracketed = [v for v in values if re.match(BRACKETED, v)]
    if len(bracketed) >= 0.95 * len(values):
        inside = [value.strip()[1:-1] for value in bracketed]
        # A comma inside of brackets divides; else it is a program that uses spaces.
        sign = next((s for s in (",", ";", "|") if any(s in v for v in inside)), " ")
        lists = [v.split() if sign == " " else v.split(sign) for v in inside]
        return ListForm(bracketed[0].strip()[0], sign, _are_vectors(lists))
    for sign in ("|", ";", ",", " "):
        if _are_vectors([value.split(sign) for value in values]):
            return ListForm("", sign, True)
        if _divides(sign, values, bool(NAMES.search(name.lower()))):
            return ListForm("", sign)
    return None


def _are_vectors(lists: list[list[str]]) -> bool:
    """Whether they have one length, but for broken ones, and their parts are fractions.

    Ids have no points; of the numbers between -1 and 1 a few are written without one.
    """
    width = Counter(map(len, lists)).most_common(1)[0][0]
    if width < 2:
        return False
    vectors = [v for v in lists if len(v) == width and all(map(_is_component, v))]
    points = sum(bool(POINT.search(part)) for v in vectors for part in v)
    return len(vectors) >= MOSTLY * len(lists) and points >= 0.5 * width * len(vectors)


def _is_component(text: str) -> bool:
    return COMPONENT.match(text.strip()) is not None


def _divides(sign: str, values: list[str], is_named: bool) -> bool:
    """Whether the parts between the signs are ids that come again in other rows."""
    lists = [[p.strip() for p in value.split(sign) if p.strip()] for value in values]
    several = [parts for parts in lists if len(parts) > 1]
    if len(several) < (1 if is_named else 0.1 * len(values)) or not several:
        return False
    parts = [part for items in lists for part in items]
    if sign in ", " and not all(ID.match(part) for part in parts):
        return False  # prose, such as "books, used"
    # Words of prose have no digits; ids and codes mostly do.
    digits = sum(any(c.isdigit() for c in part) for part in parts) / len(parts)
    if sign in ", " and digits < 0.8 and not is_named:
        return False
    varies = len({len(items) for items in lists}) > 1
    repeats = len(parts) / len(set(parts))
    return varies and (is_named or repeats >= 1.5)
