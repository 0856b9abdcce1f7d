"""The keys of values, and of pairs of values, under which statistics are kept.

An id has the key of `data.keys`, a number that of its quantile bucket, and a missing
value a key of its own: that a value is missing says something too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.column import RawColumns, scalar_column
from torchrec_adrec.data.keys import keys, splitmix
from torchrec_adrec.data.prepare.counts import Counts
from torchrec_adrec.data.prepare.numeric import Quantiles
from torchrec_adrec.schema import Schema, Side

MISSING_KEY = -1  # keys of ids and buckets are not negative
Sources = tuple[str, ...]
"""One raw column, or the two of a pair."""


@dataclass(frozen=True)
class KeyedColumn:
    """The keys of some rows, each distinct value once.

    Attributes:
        keys: (V,) int64; several values may have one key, as numbers in a bucket do.
        codes: (B,) position in `keys`; unlike a raw column's, never negative.
    """

    keys: Int64s
    codes: Int64s


KeyedColumns = dict[Sources, KeyedColumn]


@dataclass(frozen=True)
class ValueKeys:
    """Gives keys to the values of raw columns.

    Attributes:
        quantiles: the buckets of every raw column that holds numbers.
    """

    quantiles: Mapping[str, Quantiles]

    @classmethod
    def fit(cls, schema: Schema, counts: Counts, buckets: int) -> "ValueKeys":
        """Fit the buckets of all numbers.

        Args:
            schema: the features; statistics among them are left out.
            counts: the raw values of the training rows.
            buckets: the largest number of buckets of one column.
        """
        quantiles = {}
        for name in number_sources(schema):
            values = counts[name]["value"].cast(pl.Float64).to_numpy()
            finite = np.isfinite(values)
            rows = counts[name]["count"].to_numpy()
            quantiles[name] = Quantiles.fit(name, values[finite], rows[finite], buckets)
        return cls(quantiles)

    def of(self, raw: RawColumns, columns: Iterable[Sources]) -> KeyedColumns:
        """Return the keys of some columns and pairs, by what was asked for.

        A column that stands in several pairs is hashed once.
        """
        columns = list(columns)
        names = dict.fromkeys(name for sources in columns for name in sources)
        singles = {name: self._column(raw, name) for name in names}
        keyed = {}
        for first, *second in columns:
            column = singles[first]
            for name in second:
                column = _paired(column, singles[name])
            keyed[(first, *second)] = column
        return keyed

    def _column(self, raw: RawColumns, name: str) -> KeyedColumn:
        column = scalar_column(raw, name)
        if name in self.quantiles:
            numbers = column.values.cast(pl.Float64).to_numpy()
            buckets = self.quantiles[name].bucket(numbers)
            # `data.bounds` refuses such a number or takes it for a missing one.
            value_keys = np.where(np.isfinite(numbers), buckets, MISSING_KEY)
        else:
            value_keys = keys(column.values)
        codes = column.codes.astype(np.int64)
        codes[codes < 0] = len(value_keys)
        return KeyedColumn(np.append(value_keys, MISSING_KEY), codes)


def _paired(first: KeyedColumn, second: KeyedColumn) -> KeyedColumn:
    pairs = first.codes * len(second.keys) + second.codes
    distinct, codes = np.unique(pairs, return_inverse=True)
    left, right = np.divmod(distinct, len(second.keys))
    return KeyedColumn(pair_keys(first.keys[left], second.keys[right]), codes)


def pair_keys(first: Int64s, second: Int64s) -> Int64s:
    """Return the keys of pairs of values, of the keys of both; one may be for all."""
    # The second splitmix sets (a, b) apart from (b, a).
    hashed = splitmix(first.view(np.uint64))
    return splitmix(hashed ^ second.view(np.uint64)).view(np.int64)


def number_sources(schema: Schema) -> list[str]:
    """Return the raw columns that hold numbers."""
    numbers = [f.source for side in Side for f in schema.numbers_of(side)]
    numbers += [f.source for f in schema.sparse if f.kind == "number"]
    return sorted(set(numbers))
