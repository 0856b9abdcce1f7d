"""Values that no table, layer or loss can take: refused, or repaired and counted.

`raise` stops with an error. `clamp` takes the nearest allowed value; for infinity that
is the largest of the batch. `unknown` takes the value that means unknown: id 1, number
0 (the mean, once standardised), a label that was not observed. NaN has no nearest value
and becomes unknown either way. An id behind the end of its sequence is always refused.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torchrec_adrec.arrays import Bools
from torchrec_adrec.data.loader.parquet import StepRows
from torchrec_adrec.data.prepare.vocabulary import UNKNOWN
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Label, Schema, Side

log = logging.getLogger(__name__)


class OutOfRangeError(DataError):
    """A value that no table, layer or loss can take.

    Attributes:
        row: its row in the batch.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Limit:
    """The values that a column may hold.

    Attributes:
        name: of the column.
        low, high: the smallest and the largest value; infinity: any finite one.
        unknown: the value that means unknown; if it is NaN, NaN is allowed.
        whole: whether only whole numbers are allowed.
        expected: the limit in words, for messages.
    """

    name: str
    low: float
    high: float
    unknown: float
    whole: bool
    expected: str

    def wrong(self, values: NDArray[Any]) -> Bools:
        """True for each of the values (B,) that is not allowed."""
        allowed: Bools = np.isfinite(values)
        allowed &= (values >= self.low) & (values <= self.high)
        # Integers are whole by their type; the comparison would cost two passes.
        if self.whole and values.dtype.kind not in "iu":
            allowed &= values == np.rint(values)
        if np.isnan(self.unknown):
            allowed |= np.isnan(values)
        return ~allowed

    def repair(
        self, values: NDArray[Any], bounds: Literal["clamp", "unknown"]
    ) -> NDArray[Any]:
        """A copy in which every value is allowed."""
        wrong = self.wrong(values)
        becomes_unknown = wrong if bounds == "unknown" else np.isnan(values)
        # A column without limits has no nearest value to infinity: the batch's own
        # extremes are used, or 0 if no value of the batch is good.
        good = values[~wrong & ~np.isnan(values)]  # NaN may be allowed
        if not len(good):
            good = np.zeros(1, values.dtype)
        low = self.low if np.isfinite(self.low) else good.min()
        high = self.high if np.isfinite(self.high) else good.max()
        nearest = np.clip(values, low, high)
        if self.whole:
            nearest = np.rint(nearest)
        replacement = np.where(becomes_unknown, self.unknown, nearest)
        repaired = np.where(wrong, replacement, values)
        return repaired.astype(values.dtype)


@dataclass
class RepairCounts:
    """The number of repaired values by column; its owner reports it at the end."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, limit: Limit, wrong: Bools, rows: StepRows) -> None:
        """Count one column's wrong values; log the first of the run, with its row."""
        # One line a column: a column that is wrong throughout would fill the log.
        if limit.name not in self.counts:
            row = int(np.argmax(wrong))
            position = rows.split.locate(int(rows.numbers[row]))
            fault = _fault(limit, rows.columns[limit.name][row])
            log.warning("%s: %s; repaired, and so is every later one", position, fault)
        self.counts[limit.name] += int(wrong.sum())

    def report(self) -> None:
        """Log the totals, if there are any."""
        if self.counts:
            totals = ", ".join(f"{name} {n}" for name, n in self.counts.items())
            log.warning("values out of range that were repaired: %s", totals)


def side_limits(schema: Schema, side: Side) -> Iterator[Limit]:
    """The limits of one side's columns."""
    for dense in schema.dense_of(side):
        yield Limit(dense.name, -np.inf, np.inf, 0, False, "a finite number")
    for sparse in schema.sparse_of(side):
        yield _id_limit(sparse.name, 0, sparse.num_embeddings)
    for sequence in schema.sequences_of(side):
        for name in sequence.columns:
            # -1 fills the places behind the last id.
            yield _id_limit(name, -1, sequence.num_embeddings)


def _id_limit(name: str, low: int, size: int) -> Limit:
    expected = f"{low} to {size - 1} (was the data prepared with another vocabulary?)"
    return Limit(name, low, size - 1, UNKNOWN, True, expected)


def label_limit(label: Label) -> Limit:
    """The limit of a label's column, in which NaN means not observed."""
    rule, high, expected = label.rule, label.highest, label.rule.expected
    if rule.is_open:
        expected = f"0 to {high:g}, {'whole' if rule.whole else 'finite'}"
    return Limit(label.name, 0, high, np.nan, rule.whole, f"{expected}, or NaN")


def refuse(columns: Mapping[str, NDArray[Any]], limits: Iterator[Limit]) -> None:
    """Stop at a value that is not allowed.

    Raises:
        OutOfRangeError: names the first wrong value of the first wrong column.
    """
    for limit in limits:
        wrong = limit.wrong(columns[limit.name])
        if wrong.any():
            row = int(np.argmax(wrong))
            raise OutOfRangeError(_fault(limit, columns[limit.name][row]), row)


def repair(
    rows: StepRows,
    schema: Schema,
    bounds: Literal["clamp", "unknown"],
    repaired: RepairCounts,
) -> StepRows:
    """The same rows with every value allowed; only columns that were wrong are copied.

    Args:
        rows: B of them.
        schema: of their columns.
        bounds: how values are repaired.
        repaired: counts them.
    """
    columns = dict(rows.columns)
    for limit in _all_limits(schema):
        wrong = limit.wrong(columns[limit.name])
        if wrong.any():
            repaired.add(limit, wrong, rows)
            columns[limit.name] = limit.repair(columns[limit.name], bounds)
    return replace(rows, columns=columns)


def _all_limits(schema: Schema) -> Iterator[Limit]:
    for side in Side:
        yield from side_limits(schema, side)
    for label in schema.labels:
        yield label_limit(label)


def _fault(limit: Limit, value: Any) -> str:
    return f"{limit.name} is {value}, expected {limit.expected}"
