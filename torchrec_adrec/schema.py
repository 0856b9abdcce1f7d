"""What is known of the columns: names, sides, table sizes and the one key order.

Saved as JSON beside the data, every checkpoint and every index; the fingerprint lets a
later stage refuse what was made from other columns.
"""

import hashlib
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from torchrec_adrec.errors import SchemaError

AD_ID = "ad_id"
LOG_Q = "log_q"


class Side(StrEnum):
    """Which tower reads a feature."""

    USER = "user"
    AD = "ad"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Feature(_Part):
    name: str
    side: Side


class DenseFeature(_Feature):
    """A number per row: float32, finite, standardised by `data.numeric`."""


class SparseFeature(_Feature):
    """An id per row, looked up in a table of `num_embeddings` rows of its own.

    `source` is the raw column that the id is made of; `bucketed` says that the column
    is a number which `data.numeric.bucket` makes discrete first. `num_embeddings` is 0
    until `adrec prepare` has fitted the vocabulary.
    """

    source: str
    bucketed: bool = False
    num_embeddings: int = 0


class Schema(_Part):
    """All columns of a data set; the order of `sparse` is every KJT's key order."""

    dense: tuple[DenseFeature, ...]
    sparse: tuple[SparseFeature, ...]
    labels: tuple[str, ...]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [f.name for f in (*self.dense, *self.sparse)] + list(self.labels)
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"column names must be unique, found twice: {twice}")
        return self

    def dense_of(self, side: Side) -> tuple[DenseFeature, ...]:
        """The dense features of one side, in order."""
        return tuple(f for f in self.dense if f.side == side)

    def sparse_of(self, side: Side) -> tuple[SparseFeature, ...]:
        """The sparse features of one side, in key order."""
        return tuple(f for f in self.sparse if f.side == side)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any name, order, side or table size."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Schema":
        """Read what `save` wrote.

        Raises:
            SchemaError: the file is missing or is no schema.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise SchemaError(f"{path} is not a readable schema: {reason}") from error
