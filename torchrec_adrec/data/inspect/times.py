"""Whether a column holds times, how they are written, and their unit."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from torchrec_adrec.data.inspect.words import TIMES, mentions

ISO = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?)?$"
# The years 1995 to 2035 in each unit.
FIRST, LAST = 788_918_400, 2_051_222_400
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6}
UNITS |= {"nanoseconds": 10**9}
FORMATS = (
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M:%S UTC",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%d/%m/%Y",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y",
)
MOST = 5_000  # values that are looked at
MOSTLY = 0.99  # of the values are times: the others are broken, and bad rows


@dataclass(frozen=True)
class TimeForm:
    """How a time is written.

    Attributes:
        kind: iso, number (of `unit` since 1970), or text of another format.
        unit: of a number.
        format: of other text, as `strptime` reads it.
        is_float: whether a number is written as 964982703.0.
        doubt: what else the text may mean; empty if nothing.
        broken: which values are no such times, in words; empty if all are.
    """

    kind: Literal["iso", "number", "format"]
    unit: str | None
    format: str = ""
    is_float: bool = False
    doubt: str = ""
    broken: str = ""


def time_form(name: str, text: pl.Series) -> TimeForm | None:
    """Return how times are written; None if these are no times.

    Args:
        name: of the column: a number is a time only where the name says so, as an id
            may be any number.
        text: its values, none missing.
    """
    iso = text.str.contains(ISO)
    if len(text) and iso.sum() >= MOSTLY * len(text):
        return TimeForm("iso", None, broken=misfits(text, iso))
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == 0 and len(text) and mentions(name, TIMES):
        low, high = float(str(numbers.min())), float(str(numbers.max()))
        for unit, scale in UNITS.items():
            if FIRST * scale <= low and high <= LAST * scale:
                has_point = bool(text.str.contains(r"[.eE]").any())
                return TimeForm("number", unit, is_float=has_point)
    if numbers.null_count() == 0:
        return None
    return _other_format(text.unique().head(MOST))


def _other_format(text: pl.Series) -> TimeForm | None:
    read = {form: text.str.to_datetime(form, strict=False) for form in FORMATS}
    count = {form: len(text) - times.null_count() for form, times in read.items()}
    most = max(count.values())
    if not len(text) or most < MOSTLY * len(text):
        return None
    fitting = [form for form in FORMATS if count[form] == most]
    day_first, month_first = fitting[0], fitting[-1]
    broken = misfits(text, read[day_first].is_not_null())
    doubt = ""
    if day_first[:2] == "%d" and month_first[:2] == "%m":
        doubt = f"read as {day_first}, but {month_first} fits all values too"
    return TimeForm("format", None, format=day_first, doubt=doubt, broken=broken)


def misfits(text: pl.Series, fits: pl.Series) -> str:
    """Say how many values do not fit, and show one; empty if all fit."""
    others = text.filter(~fits)
    return f"{len(others):,} values such as {others[0]!r}" if len(others) else ""
