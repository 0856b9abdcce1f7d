"""What one column of your own table can be: a feature, a label, a time, a joined file.

A feature is written as its kind (`country: text`) or, where there is more to say, as a
block of keys (`price: {kind: number, buckets: quantile}`). `column` is its name in the
file, if that is another one.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from torchrec_adrec.config.base import Settings
from torchrec_adrec.schema import LABEL_RULES, MOST_COMPONENTS, LabelKind


class _Column(Settings):
    column: str | None = None
    """Its name in the file; default: the name of the feature."""


class TextColumn(_Column):
    """An id: text or integers, one row of a table for each value."""

    kind: Literal["text"]


class HexColumn(_Column):
    """An id of eight hexadecimal digits, as Criteo's hashes."""

    kind: Literal["hex"]


class NumberColumn(_Column):
    """A number; with `buckets` also an id, `<name>_bucket`, which missing has too."""

    kind: Literal["number"]
    transform: Literal["log_standard", "standard", "log"] = "log_standard"
    """As of `data.numbers`, for this column."""
    buckets: Literal["log_square", "quantile"] | None = None
    """Also an id, made discrete like this; null: a number only."""


class SequenceColumn(_Column):
    """Several ids, the latest last: a list in Parquet, text with separators in CSV."""

    kind: Literal["sequence"]
    max_length: Annotated[int, Field(ge=1)] = 20
    """The number of ids that are kept, the latest ones."""
    separator: Annotated[str, Field(min_length=1)] = " "
    """The sign between two ids, where the column is text."""
    shares_ids_with: str | None = None
    """The ad's feature that these are values of, as the ads that a user clicked before.
    The sequence then has that feature's ids, and these ads are no negatives of their
    user."""


class ListColumn(_Column):
    """A set of ids, as the genres of a film: a list in Parquet, divided text in CSV.

    Their order and repetitions do not count.
    """

    kind: Literal["list"]
    max_length: Annotated[int, Field(ge=1)] = 20
    """The largest number of ids. A row with more is a bad row: which of them to drop
    would be a matter of chance."""
    separator: Annotated[str, Field(min_length=1)] = " "
    """The sign between two ids, where the column is text."""


class VectorColumn(_Column):
    """Numbers that belong together, as an image's embedding; a list in Parquet, divided
    text in CSV.

    Models read one learned projection of it. A missing vector is one of zeros with an
    indicator of its own; a row whose vector has another length, or a number that is not
    finite, is a bad row.
    """

    kind: Literal["vector"]
    size: Annotated[int, Field(ge=1, le=MOST_COMPONENTS)] | None = None
    """How many numbers; default: as many as the first vector of the data has."""
    separator: Annotated[str, Field(min_length=1)] = " "
    """The sign between two numbers, where the column is text."""


class EmbeddedTextColumn(_Column):
    """Prose, as a title, that `prepare` makes a vector of; it needs the extra `[text]`.

    The vectors stay as they are; models learn a projection of them.
    """

    kind: Literal["embedded_text"]
    encoder: str = "all-MiniLM-L6-v2"
    """What encodes it. The data record its version, and another one is refused."""


class HistoryColumn(Settings):
    """The ads that the user clicked before the row's time, made of the log itself.

    Clicks of the row's own time are not before it. It needs `user_id`.
    """

    kind: Literal["history"]
    of: str
    """The ad's feature that it holds, whose ids it shares; these ads are no negatives
    of their user."""
    length: Annotated[int, Field(ge=1)] = 20
    """The number of clicks that are kept, the latest ones."""

    @property
    def column(self) -> None:
        """Its name in the file: there is none."""

    @property
    def max_length(self) -> int:
        """`length`, by the name that a sequence of the file has for it."""
        return self.length

    @property
    def shares_ids_with(self) -> str:
        """`of`, likewise."""
        return self.of


class LabelColumn(_Column):
    """An outcome; a missing value was not observed (the first label must always be)."""

    column: Annotated[
        str | None, Field(validation_alias=AliasChoices("column", "from"))
    ] = None
    """Its name in the file (`from` is another word for it); default: the name of the
    label."""
    kind: LabelKind = "binary"
    """binary: 0 or 1. value: a number from 0, whose mean is predicted."""
    max_value: Annotated[float, Field(gt=0)] | None = None
    """A larger number is cut to it: a few outliers would rule every squared error."""
    at_least: float | None = None
    """The label is 1 where the column's number is at least this, else 0: a rating of 4
    stars or more is a click with `{from: rating, at_least: 4}`."""
    positives_only: bool = False
    """Every row is a positive, and no column says so: `prepare` draws negatives, for
    each row out of the ads that the log had shown until then, without those that the
    user took. It needs `user_id`; the first label alone can be so."""
    negatives: Annotated[int, Field(ge=0, le=1000)] = 4
    """Drawn for each positive, with `positives_only`. 0: none; towers are then trained
    by their contrast alone (`retrieval.alpha: 0`), and a ranker has nothing to learn.
    """
    negatives_by: Literal["popularity", "uniform"] = "popularity"
    """popularity: an ad is as likely as it was taken until then. uniform: all ads that
    existed are equally likely."""

    @model_validator(mode="after")
    def _positives_have_no_column(self) -> Self:
        # Who names a column means it to count: rows that are none would be positives.
        # A saved configuration names them too, without a value.
        ignored = [n for n in ("at_least", "column") if getattr(self, n) is not None]
        if self.positives_only and ignored:
            raise ValueError(
                "`positives_only` makes every row a positive and reads no column; leave"
                f" {' and '.join(ignored)} out, or leave `positives_only` out"
            )
        return self

    @model_validator(mode="after")
    def _open_kinds_have_a_limit(self) -> Self:
        is_open = LABEL_RULES[self.kind].is_open
        if is_open and self.max_value is None:
            raise ValueError(f"`kind: {self.kind}` needs `max_value`")
        if not is_open and self.max_value is not None:
            raise ValueError(f"`max_value` is for values, a {self.kind} label has none")
        if is_open and self.at_least is not None:
            raise ValueError(
                f"`at_least` makes 0 and 1, `kind: {self.kind}` has neither"
            )
        return self


class TimeColumn(Settings):
    """The time of a row, for a split by time."""

    column: str
    """Its name in the file."""
    kind: Literal["iso", "number"] = "iso"
    """iso: a date or time column, or text such as 2024-05-01T12:00:00 (UTC where it
    names no offset). number: integers of any unit, the same in all files."""


class SideTableConfig(Settings):
    """A file of what is known about users or ads, joined to the log by their id."""

    file: str
    """Parquet, CSV, TSV or GroupLens's .dat (the texts also .gz) with one row for each
    id; it is held in memory."""
    key: str | None = None
    """Its column with the id; default: the name that the id has in the log."""
    names: tuple[str, ...] = ()
    """The names of all its columns, if it is text without a header."""


# `country: text` is short for `country: {kind: text}`, and `time: ts` for
# `time: {column: ts}`.
def _block_of_kind(value: Any) -> Any:
    if isinstance(value, dict) and "of" in value:
        return {"kind": "history", **value}
    return {"kind": value} if isinstance(value, str) else value


def _block_of_file(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


def _block_of_column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


# The name of a feature is also that of a column of the prepared data and of a file with
# its vocabulary.
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
FeatureColumn = Annotated[
    Annotated[
        TextColumn
        | HexColumn
        | NumberColumn
        | SequenceColumn
        | ListColumn
        | VectorColumn
        | EmbeddedTextColumn
        | HistoryColumn,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_block_of_kind),
]


Time = Annotated[TimeColumn, BeforeValidator(_block_of_column)]
SideTable = Annotated[SideTableConfig, BeforeValidator(_block_of_file)]
