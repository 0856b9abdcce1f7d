"""A label's column: which raw numbers are kept, cut or refused, by the label's kind."""

import polars as pl

from torchrec_adrec.data.adapters.rows import ColumnRule
from torchrec_adrec.schema import Label


def label_column(
    label: Label,
    source: str,
    number: pl.Expr,
    raw: pl.Expr,
    required: bool,
    expected: str | None = None,
) -> ColumnRule:
    """The rule of a label's column, Float32; numbers above `max_value` are cut to it.

    Args:
        label: its kind says which numbers are allowed (`schema.LABEL_RULES`).
        source: the raw column, for messages.
        number: the raw value as a number, null where it cannot be read as one.
        raw: the raw value, null where there is none: the label was not observed.
        required: whether a row in which it was not observed is a bad row.
        expected: the allowed values in words; default: those of the kind.
    """
    rule = label.rule
    allowed = number.is_finite() & (number >= 0) & (number <= rule.highest)
    if rule.whole:
        allowed = allowed & (number == number.floor())
    # Without `fill_null` a text that is no number would be neither allowed nor a fault.
    fault = raw.is_not_null() & ~allowed.fill_null(False)
    if required:
        fault = fault | raw.is_null()
    if label.max_value is not None:
        number = number.clip(upper_bound=label.max_value)
    value, expected = number.cast(pl.Float32), expected or rule.expected
    return ColumnRule(label.name, source, value, fault, expected)
