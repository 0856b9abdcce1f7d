"""What the values of a column look like, whatever the column is for."""

import re
from dataclasses import dataclass
from typing import Literal

import polars as pl

from torchrec_adrec.data.inspect.lists import ListForm, list_form
from torchrec_adrec.data.inspect.times import MOSTLY, TimeForm, misfits, time_form
from torchrec_adrec.data.inspect.words import QUANTITIES, mentions

Form = Literal[
    "empty", "constant", "flag", "integer", "decimal", "hex", "list", "time", "text",
    "other",
]  # fmt: skip
# Half of the bad rows that `prepare` allows by default.
NEARLY_ALL = 0.9995
FLAGS = {
    **{"0": "0", "1": "1", "false": "0", "true": "1", "no": "0", "yes": "1"},
    **{"n": "0", "y": "1", "f": "0", "t": "1", "nein": "0", "ja": "1", "non": "0"},
    **{"oui": "1", "-1": "0", "0.0": "0", "1.0": "1"},
}
INTEGER, DECIMAL, HEX = (
    r"^-?\d+$",
    r"^[-+]?\d*\.?\d+([eE][-+]?\d+)?$",
    r"^[0-9a-fA-F]{8}$",
)
WHOLE, ZEROS, FRACTION = r"^-?\d+(\.0*)?$", r"^0\d", r"^-?\d*[.,]\d*[1-9]\d*$"
# 1.234,50 and 59,90: numbers of most of Europe.
COMMA = r"^-?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?$"
THOUSANDS = r"^-?([1-9]\d{0,2}(\.\d{3})+|\d{1,3})$"
# Texts that programs write for no value. NA and None may be words, so they count only
# where all other values are numbers.
NO_VALUE = ("NULL", "null", r"\N", "NaN", "nan", "N/A", "n/a", "#N/A", "<NA>")
MOST_WORDS = 3
LONG = 40  # signs, from which text is prose and not a value


@dataclass(frozen=True)
class Profile:
    """What a sample tells of one column.

    Attributes:
        name: of the column.
        type: of its values in the file, String for text files.
        form: what the values look like.
        rows: of the sample.
        missing: rows without a value.
        distinct: values.
        whole: whether all numbers are whole (7 or 7.0).
        as_float: whether whole numbers are written as 7.0.
        zeros: whether a whole number begins with a 0 that arithmetic would lose.
        comma: whether decimals have a comma, and thousands perhaps a point.
        thousands: whether every point may divide thousands, as in 950 and 1.234.
        mean_length: signs of a text.
        words: texts between numbers that seem to mean no value.
        broken: which values are no numbers or times, in words; empty if all are.
        list: how a list is written.
        time: how a time is written.
    """

    name: str
    type: pl.DataType
    form: Form
    rows: int
    missing: int
    distinct: int
    whole: bool = False
    as_float: bool = False
    zeros: bool = False
    comma: bool = False
    thousands: bool = False
    mean_length: float = 0.0
    words: tuple[str, ...] = ()
    broken: str = ""
    list: ListForm | None = None
    time: TimeForm | None = None

    @property
    def known(self) -> int:
        """Rows with a value."""
        return self.rows - self.missing

    @property
    def is_id(self) -> bool:
        """Whether its values can name something."""
        is_name = self.form in ("integer", "hex", "text", "flag")
        return is_name or (self.form == "decimal" and self.whole)

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self.form in ("integer", "decimal")

    @property
    def is_unique(self) -> bool:
        """Whether hardly any value comes twice, in enough rows to tell."""
        return self.known >= 20 and self.distinct > 0.9 * self.known


def profile(column: pl.Series) -> Profile:
    """Look at the values of a column, in which empty text is null."""
    column_type, rows = column.dtype, len(column)
    if isinstance(column_type, pl.List):
        items = column.drop_nulls().list.len().sum()
        form: Form = "list" if items else "empty"
        inner = column_type.inner
        if not (inner in (pl.String(), pl.Null()) or inner.is_numeric()):
            form = "other"
        missing = int((column.list.len().fill_null(0) == 0).sum())
        plain = ListForm("", None)
        return Profile(column.name, column_type, form, rows, missing, 0, list=plain)
    if column_type.is_nested() or column_type in (pl.Binary(), pl.Object()):
        return Profile(column.name, column_type, "other", rows, column.null_count(), 0)
    values = column.fill_nan(None) if column_type.is_float() else column
    text = values.drop_nulls().cast(pl.String)
    base = Profile(
        column.name, column_type, "text", rows, rows - len(text), text.n_unique()
    )
    return _look(base, text)


def _look(base: Profile, text: pl.Series) -> Profile:
    facts = dict(vars(base))
    if base.distinct == 0:
        return Profile(**{**facts, "form": "empty"})
    if base.type.is_temporal():
        return Profile(**{**facts, "form": "time", "time": TimeForm("iso", None)})
    if base.distinct == 1 and base.rows > 1 and not base.missing:
        return Profile(**{**facts, "form": "constant"})
    values = {value.lower() for value in text.unique().head(4)}
    # -1 is a "no" beside 1 alone: beside 0 it is a number.
    if len(values) == 2 and {FLAGS.get(v) for v in values} == {"0", "1"}:
        return Profile(**{**facts, "form": "flag"})
    words = _words(text) if base.type == pl.String() else ()
    if words:
        text = text.filter(~text.is_in(words))
        missing = base.rows - len(text)
        facts |= {"words": words, "missing": missing, "distinct": text.n_unique()}
    time = time_form(base.name, text)
    if time is not None:
        facts |= {"broken": time.broken}
        return Profile(**{**facts, "form": "time", "time": time})
    if _share(text, HEX) >= NEARLY_ALL and _share(text, "[a-fA-F]") > 0.1:
        return Profile(**{**facts, "form": "hex"})
    # Among ids of digits, A12 is one more id; among amounts it is a broken one.
    is_amount = mentions(base.name, QUANTITIES) or _share(text, FRACTION) > 0.1
    least = MOSTLY if is_amount else NEARLY_ALL
    if _share(text, INTEGER) >= least:
        zeros = _share(text, ZEROS) > 0
        facts |= {"broken": misfits(text, text.str.contains(INTEGER))}
        return Profile(**{**facts, "form": "integer", "whole": True, "zeros": zeros})
    if _share(text, DECIMAL) >= least:
        whole = _share(text, WHOLE) >= NEARLY_ALL
        facts |= {"broken": misfits(text, text.str.contains(DECIMAL))}
        facts |= {"whole": whole, "as_float": whole}
        facts |= {"thousands": _share(text, THOUSANDS) >= least}
        return Profile(**{**facts, "form": "decimal"})
    if _share(text, COMMA) >= least and _share(text, ",") > 0:
        facts |= {"broken": misfits(text, text.str.contains(COMMA)), "comma": True}
        return Profile(**{**facts, "form": "decimal"})
    lists = list_form(base.name, text)
    if lists is not None:
        return Profile(**{**facts, "form": "list", "list": lists})
    length = text.str.len_chars().mean()
    return Profile(**{**facts, "mean_length": float(length or 0)})  # type: ignore[arg-type]


def _words(text: pl.Series) -> tuple[str, ...]:
    """Texts that mean no value: the usual ones, and the few between numbers."""
    usual = {v for v in text.unique() if v in NO_VALUE}
    is_number = text.str.contains(DECIMAL) | text.str.contains(COMMA)
    others = set(text.filter(~is_number).unique().head(MOST_WORDS + 1))
    # A quarter may be missing in words, and a word is written alike each time.
    mean = is_number.mean()
    if isinstance(mean, float) and mean >= 0.5 and len(others) <= MOST_WORDS:
        plain = {v for v in others if not re.search(r"\d", v)}
        usual |= plain if plain == others else set()
    return tuple(sorted(usual))


def _share(text: pl.Series, pattern: str) -> float:
    """The share of texts that a pattern matches."""
    return float(text.str.contains(pattern).mean() or 0)  # type: ignore[arg-type]
