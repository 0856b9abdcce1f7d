"""What a model reads of a row: numbers, ids and histories, each of one side."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from torchrec_adrec.schema.contract import Frozen, Name

MOST_ROWS = 2**31 - 1  # of a table: ids are 32 bits wide
MOST_COMPONENTS = 65_536  # of a vector


class Side(StrEnum):
    """The tower that reads a feature."""

    USER = "user"
    AD = "ad"


class _Feature(Frozen):
    name: Name
    side: Side


class Statistic(Frozen):
    """What the training rows tell about a value, or about a pair of values.

    It is `logit((s + a * p0) / (c + a))`, or `log1p(c)`: c is the number of training
    rows that have the value and whose label was observed, s the number of positive ones
    among them, and p0 the label's rate in all training rows.

    Attributes:
        label: the name of a binary label.
        strength: a, the number of rows by which a rate is drawn towards p0; None stands
            for `log1p(c)`.
        paired_with: the second raw column of a pair: of the same side, or the user's
            column of a cross.
    """

    label: str
    strength: float | None = None
    paired_with: str | None = None


class DenseFeature(_Feature):
    """A number per row, float32 and finite, made from the raw column `source`.

    The transforms are those of `data.prepare.numeric`. A feature with a `statistic` is
    not the column's number: it is what `data.prepare.statistics` counted of the
    column's value, and then the column may also hold ids.
    """

    source: str
    transform: Literal["log_standard", "standard", "log"] = "log_standard"
    # Left out of the JSON where it is None: data without statistics keep the
    # fingerprint that they had before there were any.
    statistic: Statistic | None = Field(default=None, exclude_if=lambda x: x is None)

    @property
    def sources(self) -> tuple[str, ...]:
        """The raw columns that it is made of: one, or the two of a pair."""
        second = self.statistic and self.statistic.paired_with
        return (self.source, second) if second else (self.source,)


class SparseFeature(_Feature):
    """An id per row, looked up in a table of `num_embeddings` rows of its own.

    `source` is the raw column that the id is made from, and `kind` says how its values
    are read: eight hexadecimal digits, any text, or a number, which `buckets` make
    discrete first. `num_embeddings` is 0 until `adrec prepare` has fitted the
    vocabulary.
    """

    source: str
    kind: Literal["hex", "text", "number"] = "hex"
    buckets: Literal["log_square", "quantile"] | None = None
    num_embeddings: Annotated[int, Field(ge=0, le=MOST_ROWS)] = 0

    @model_validator(mode="after")
    def _numbers_have_buckets(self) -> Self:
        if (self.kind == "number") != (self.buckets is not None):
            raise ValueError(f"{self.name}: a number needs buckets, nothing else may")
        return self


class SequenceFeature(_Feature):
    """Up to `max_length` ids per row, the latest last: a history; or a set of ids.

    The table itself averages its vectors (`PoolingType.MEAN`); a row without history
    has the zero vector. In Parquet it is `max_length` plain columns, because a list
    column reads three to five times slower; -1 fills the places after the last id.

    `shares_ids_with` names an ad's sparse feature that has the same values: the
    sequence then uses that feature's ids, and the ads in it are never negatives of
    their user.

    Without `ordered` it is a set, as the genres of a film are: each id once, and raw
    values in the order of text, so that equal sets are equal lists.
    """

    source: str
    kind: Literal["hex", "text"] = "text"
    max_length: int = 20
    num_embeddings: Annotated[int, Field(ge=0, le=MOST_ROWS)] = 0
    shares_ids_with: str | None = None
    # Left out of the JSON where it is True: data without sets keep their fingerprint.
    ordered: bool = Field(default=True, exclude_if=lambda x: bool(x))

    @model_validator(mode="after")
    def _sets_have_ids_of_their_own(self) -> Self:
        if not self.ordered and self.shares_ids_with is not None:
            raise ValueError(f"{self.name}: a set is no history, it shares no ids")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its Parquet columns."""
        return tuple(f"{self.name}:{i}" for i in range(self.max_length))


class VectorFeature(_Feature):
    """`size` numbers a row that belong together: an image's embedding, or a text's.

    Models read one learned projection of it, as wide as a vector of a table. In a batch
    it is `width` numbers of float32: the components as they are, then 1 where the value
    is missing, whose components are 0. In the Parquet files of the splits it is the row
    of the value among all distinct ones (`data.vectors`), since an item's vector stands
    in many rows.

    Attributes:
        source: the raw column, float32 components as bytes, or text.
        size: the number of components.
        scale: models multiply components by it: 1 / their root mean square over the
            training rows, so that they are as large as standardised numbers.
        encoder: name and version of what makes vectors of text; None: it is no text.
    """

    source: str
    size: Annotated[int, Field(ge=1, le=MOST_COMPONENTS)]
    scale: float = 1.0
    encoder: str | None = Field(default=None, exclude_if=lambda x: x is None)

    @property
    def width(self) -> int:
        """The numbers of a row: the components, and whether there are any."""
        return self.size + 1


Bag = SparseFeature | SequenceFeature
