"""Raw value -> id: 0 missing, 1 unknown or rare, then by falling frequency."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

MISSING = 0
UNKNOWN = 1
FIRST = 2


@dataclass(frozen=True)
class Vocabulary:
    """The ids of one column.

    Attributes:
        values: (V,) int64, the known raw values in rising order.
        ids: (V,) int32, the id of each.
    """

    values: NDArray[np.int64]
    ids: NDArray[np.int32]

    @classmethod
    def fit(cls, counts: pl.DataFrame, min_count: int) -> "Vocabulary":
        """Number the values by falling frequency, equal ones by value.

        Args:
            counts: `value` and `count`, one row per distinct value of the training
                rows; a null value is missing and gets no id of its own.
            min_count: values seen less often stay unknown.
        """
        kept = (
            counts.drop_nulls("value")
            .filter(pl.col("count") >= min_count)
            .sort(["count", "value"], descending=[True, False])
            .with_row_index("id", offset=FIRST)
            .sort("value")
        )
        return cls(
            kept["value"].cast(pl.Int64).to_numpy(),
            kept["id"].cast(pl.Int32).to_numpy(),
        )

    @property
    def num_embeddings(self) -> int:
        """Rows that a table for these ids needs."""
        return FIRST + len(self.values)

    def encode(
        self, raw: NDArray[np.int64], missing: NDArray[np.bool_]
    ) -> NDArray[np.int32]:
        """The ids of raw values, (B,) int32; what `missing` marks is not looked at."""
        ids = np.full(len(raw), UNKNOWN, dtype=np.int32)
        if len(self.values):
            at = np.searchsorted(self.values, raw).clip(max=len(self.values) - 1)
            known = self.values[at] == raw
            ids[known] = self.ids[at[known]]
        ids[missing] = MISSING
        return ids

    def to_frame(self) -> pl.DataFrame:
        """As two columns, to be saved."""
        return pl.DataFrame({"value": self.values, "id": self.ids})

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> "Vocabulary":
        """What `to_frame` gave."""
        return cls(frame["value"].to_numpy(), frame["id"].to_numpy())
