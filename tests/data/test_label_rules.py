"""A kind of label means the same to every part of the data's side."""

from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.config.table_columns import LabelColumn
from torchrec_adrec.data.adapters.labels import label_column
from torchrec_adrec.data.adapters.rows import RawRows, good_rows
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.loader.bounds import label_limit
from torchrec_adrec.schema import LABEL_RULES, Label, LabelKind

KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
NUMBERS = [-1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 7.5, 40.0, float("inf"), float("nan"), None]
MAX_VALUE = 30.0


def label_of(kind: LabelKind) -> Label:
    limit = MAX_VALUE if LABEL_RULES[kind].is_open else None
    return Label(name="y", kind=kind, max_value=limit)


def read(label: Label, required: bool) -> tuple[list[int], list[float | None], BadRows]:
    """The rows of NUMBERS that are good, their values, and the others."""
    frame = pl.DataFrame({"row": range(len(NUMBERS)), "y": NUMBERS}, strict=False)
    raw, bad = pl.col("y"), BadRows()
    numbers = np.arange(1, len(NUMBERS) + 1)
    rule = label_column(label, "y", raw, raw, required)
    rows = RawRows(frame, Path("a.csv"), numbers, "line")
    values = good_rows(rows, [rule], bad)["y"].to_list()
    lines = {int(text.split(":")[1]) for text in bad.first}
    return [i for i in range(len(NUMBERS)) if i + 1 not in lines], values, bad


def test_every_kind_has_a_rule() -> None:
    assert set(KINDS) == set(LABEL_RULES)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_the_loader_allows(kind: LabelKind) -> None:
    """Fails when one of the two takes a number that the other refuses."""
    label = label_of(kind)
    rows, values, bad = read(label, required=False)
    read_values = np.array(values, dtype=np.float32)
    assert not label_limit(label).wrong(read_values).any()
    assert bad.count == len(NUMBERS) - len(rows) > 0
    assert label_limit(label).wrong(np.array([MAX_VALUE + 1.0])).all()
    # A number above `max_value` is cut to it when it is read; the loader refuses it.
    raw = np.array([np.nan if n is None else n for n in NUMBERS], dtype=np.float32)
    refused = label_limit(label).wrong(np.minimum(raw, np.float32(MAX_VALUE)))
    refused |= np.isinf(raw)
    refused[9] = True  # NaN among the raw numbers is no number
    assert rows == np.flatnonzero(~refused).tolist()
    assert all(label.rule.expected in text for text in bad.first)


@pytest.mark.parametrize(
    ("kind", "values"),
    [("binary", [0, 1, None]), ("value", [0, 0.25, 1, 2, 7.5, 30, None])],
)
def test_the_values_of_a_kind(kind: LabelKind, values: list[float | None]) -> None:
    assert read(label_of(kind), required=False)[1] == values
    assert read(label_of(kind), required=True)[1] == values[:-1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_kind_of_a_table_needs_a_limit(kind: LabelKind) -> None:
    """And no other kind takes one, which would cut nothing."""
    is_open = LABEL_RULES[kind].is_open
    LabelColumn(kind=kind, max_value=MAX_VALUE if is_open else None)
    with pytest.raises(ValueError, match=r"needs `max_value`|a binary label has none"):
        LabelColumn(kind=kind, max_value=None if is_open else MAX_VALUE)
