"""Raw value -> id: 0 missing, 1 unknown or rare, then by frequency; or hashed."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int32s, Int64s
from torchrec_adrec.data.keys import salt, splitmix

MISSING = 0
UNKNOWN = 1
FIRST = 2


class Vocabulary(Protocol):
    """Gives ids to the keys (`data.keys`) of one column's values."""

    @property
    def num_embeddings(self) -> int:
        """Rows that a table for these ids needs."""

    def encode(self, keys: Int64s) -> Int32s:
        """(V,) keys -> (V,) ids from `UNKNOWN` up; a missing value has no key."""


@dataclass(frozen=True)
class Frequent:
    """The values that training saw often enough.

    Attributes:
        keys: (V,) int64, rising.
        ids: (V,) int32, the id of each.
    """

    keys: Int64s
    ids: Int32s

    @classmethod
    def fit(cls, keys: Int64s, counts: Int64s, min_count: int) -> "Frequent":
        """Number the keys by falling frequency, equally frequent ones by key.

        Args:
            keys: (V,); one that stands there twice counts as the sum.
            counts: (V,), rows of the training split with each.
            min_count: what was seen less often stays unknown.
        """
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
        """Missing, unknown, and one row per known value."""
        return FIRST + len(self.keys)

    def encode(self, keys: Int64s) -> Int32s:
        """Known keys to their ids, all others to `UNKNOWN`."""
        ids = np.full(len(keys), UNKNOWN, dtype=np.int32)
        if len(self.keys):
            at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
            known = self.keys[at] == keys
            ids[known] = self.ids[at[known]]
        return ids

    def to_frame(self) -> pl.DataFrame:
        """As two columns, to be saved."""
        return pl.DataFrame({"key": self.keys, "id": self.ids})

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> "Frequent":
        """What `to_frame` gave."""
        return cls(frame["key"].to_numpy(), frame["id"].to_numpy())


@dataclass(frozen=True)
class Hashed:
    """Stateless ids (Weinberger et al., ICML 2009): nothing to fit, nothing to hold.

    No value is ever unknown; two values may share a row, about V / (2 * table) of them.

    Attributes:
        name: of the feature; sets its hashes apart from those of the others.
        num_embeddings: rows of the table.
    """

    name: str
    num_embeddings: int

    def encode(self, keys: Int64s) -> Int32s:
        """Every key to one of the rows from `FIRST` up."""
        mixed = splitmix(keys.view(np.uint64) ^ salt(self.name))
        rows = np.uint64(self.num_embeddings - FIRST)
        return (mixed % rows).astype(np.int32) + np.int32(FIRST)
