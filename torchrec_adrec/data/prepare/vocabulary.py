"""Vocabularies that turn the raw values of a column into the rows of its table.

Id 0 is a missing value and id 1 an unknown or rare one, in every table. Both are ids of
their own because "no value" and "a new value" mean different things to a model. The
other ids are given by frequency (`Frequent`) or by a hash (`Hashed`).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int32s, Int64s
from torchrec_adrec.data.keys import salt, salted_hash

MISSING = 0
UNKNOWN = 1
FIRST = 2


class Vocabulary(Protocol):
    """Gives ids to the keys (`data.keys`) of one column's values."""

    @property
    def num_embeddings(self) -> int:
        """The number of rows that a table for these ids needs."""

    def encode(self, keys: Int64s) -> Int32s:
        """Return the ids, (V,) and at least `UNKNOWN`, of some keys, (V,).

        A missing value has no key, so its id is the caller's business.
        """


@dataclass(frozen=True)
class Frequent:
    """The vocabulary of the values that training saw often enough.

    Attributes:
        keys: (V,) int64, in rising order.
        ids: (V,) int32, the id of each.
    """

    keys: Int64s
    ids: Int32s

    @classmethod
    def fit(cls, keys: Int64s, counts: Int64s, min_count: int) -> "Frequent":
        """Number the keys by falling frequency, and equally frequent ones by key.

        The second order makes the ids independent of the order of the rows.

        Args:
            keys: (V,) keys; the counts of equal keys are added up.
            counts: (V,) number of training rows with each key.
            min_count: a key with fewer rows gets no id and stays unknown.
        """
        # Falling frequency puts the rows that are read most next to each other. Rising
        # keys make the look-up in `encode` a binary search without a hash table.
        kept = (
            pl.DataFrame({"key": keys, "count": counts})
            .group_by("key")
            .sum()
            .filter(pl.col("count") >= min_count)
            .sort(["count", "key"], descending=[True, False])
            .with_row_index("id", offset=FIRST)
            .sort("key")
        )
        return cls(kept["key"].to_numpy(), kept["id"].cast(pl.Int32).to_numpy())

    @property
    def num_embeddings(self) -> int:
        """One row for missing, one for unknown, and one per known value."""
        return FIRST + len(self.keys)

    def encode(self, keys: Int64s) -> Int32s:
        """Return the ids of known keys, and `UNKNOWN` for all others."""
        ids = np.full(len(keys), UNKNOWN, dtype=np.int32)
        if len(self.keys):
            # Past the last key there is nothing to compare with, hence the minimum.
            places = np.searchsorted(self.keys, keys)
            positions = np.minimum(places, len(self.keys) - 1)
            known = self.keys[positions] == keys
            ids[known] = self.ids[positions[known]]
        return ids

    def to_frame(self) -> pl.DataFrame:
        """Return the vocabulary as two columns, to be saved."""
        return pl.DataFrame({"key": self.keys, "id": self.ids})

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> "Frequent":
        """Make a vocabulary from what `to_frame` returned."""
        return cls(frame["key"].to_numpy(), frame["id"].to_numpy())


@dataclass(frozen=True)
class Hashed:
    """The vocabulary that hashes every key, so nothing is fitted or held in memory.

    No value is ever unknown, but values may share a row: about V / (2 * table) of V do.
    Source: Weinberger et al., ICML 2009.

    Attributes:
        name: the feature's name, which sets its hashes apart from other features'.
        num_embeddings: the number of rows of the table.
    """

    name: str
    num_embeddings: int

    def encode(self, keys: Int64s) -> Int32s:
        """Return one of the rows from `FIRST` up for every key."""
        mixed = salted_hash(keys, salt(self.name))
        rows = np.uint64(self.num_embeddings - FIRST)
        return (mixed % rows).astype(np.int32) + np.int32(FIRST)
