"""`data.table`: the meaning of the columns of your own table (docs/own_data.md).

A feature is written as its kind (`country: text`) or, where there is more to say, as a
block of keys (`price: {kind: number, buckets: quantile}`). `column` is its name in the
file, if that is another one. As all settings, this imports no torch and reads no data.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from torchrec_adrec.config.base import Settings
from torchrec_adrec.schema import LABEL_RULES, RESERVED, LabelKind


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
    buckets: Literal["log_square", "quantile"] | None = None


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


class LabelColumn(_Column):
    """An outcome; a missing value was not observed (the first label must always be)."""

    kind: LabelKind = "binary"
    max_value: Annotated[float, Field(gt=0)] | None = None
    """A larger number is cut to it: a few outliers would rule every squared error."""

    @model_validator(mode="after")
    def _open_kinds_have_a_limit(self) -> Self:
        is_open = LABEL_RULES[self.kind].is_open
        if is_open and self.max_value is None:
            raise ValueError(f"`kind: {self.kind}` needs `max_value`")
        if not is_open and self.max_value is not None:
            raise ValueError(f"`max_value` is for values, a {self.kind} label has none")
        return self


class TimeColumn(Settings):
    """The time of a row, for a split by time."""

    column: str
    kind: Literal["iso", "number"] = "iso"
    """iso: a date or time column, or text such as 2024-05-01T12:00:00 (UTC where it
    names no offset). number: integers of any unit, the same in all files."""


# `country: text` is short for `country: {kind: text}`, and `time: ts` for
# `time: {column: ts}`.
def _block_of_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _block_of_column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


# The name of a feature is also that of a column of the prepared data and of a file with
# its vocabulary.
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
FeatureColumn = Annotated[
    Annotated[
        TextColumn | HexColumn | NumberColumn | SequenceColumn,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_block_of_kind),
]


class TableConfig(Settings):
    """Columns of your own Parquet, CSV or TSV files."""

    labels: Annotated[dict[Name, LabelColumn], Field(min_length=1)]
    """The first is the click: binary, and observed in every row."""
    user: Annotated[dict[Name, FeatureColumn], Field(min_length=1)]
    """Features of the user and of the moment when an ad is asked for."""
    ad: Annotated[dict[Name, FeatureColumn], Field(min_length=1)]
    """Features of the ad, the same whoever sees it."""
    time: Annotated[TimeColumn, BeforeValidator(_block_of_column)] | None = None
    """Default: the rows are in time order."""
    user_id: str | None = None
    """The column that names the user, for a split by user."""
    ad_id: str | None = None
    """The column that names the ad; a feature of the ad must be made of it too. An ad
    whose other values change stays one ad, with its latest values. Default: rows with
    the same values of all the ad's features show the same ad."""
    propensity: str | None = None
    """The column of the probability with which the log's own policy showed this ad to
    this user, above 0 and at most 1 in every row. No model reads it; `adrec evaluate
    off-policy` does."""
    ignore: tuple[str, ...] = ()
    """Columns that are not used; patterns such as `tmp_*` work too. Every other column
    must be used, so that none is forgotten by a slip."""
    missing: tuple[str, ...] = ("",)
    """Texts that mean: no value."""

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        reserved = [name for name in RESERVED if name in {**self.user, **self.ad}]
        if reserved:
            raise ValueError(
                f"{reserved[0]} is a column that `prepare` writes; name the feature"
                f" otherwise, as `creative: {{column: {reserved[0]}, kind: text}}`"
            )
        return self

    @model_validator(mode="after")
    def _no_label_is_a_feature(self) -> Self:
        labels = {f.column or name for name, f in self.labels.items()}
        shared = sorted(labels & {column for _, _, column in self.features()})
        if shared:
            raise ValueError(
                f"columns {shared} are labels: known only after the ad was shown, they"
                " may be no features"
            )
        return self

    @model_validator(mode="after")
    def _no_feature_is_the_propensity(self) -> Self:
        if self.propensity in {column for _, _, column in self.features()}:
            raise ValueError(
                f"propensity: {self.propensity} is a feature too; a model that reads"
                " it would rank by what the log's policy has decided"
            )
        return self

    @model_validator(mode="after")
    def _the_key_is_an_id_of_the_ad(self) -> Self:
        if self.ad_id is not None and self.key is None:
            raise ValueError(
                f"ad_id: no text or hex feature of the ad is made of {self.ad_id}, so"
                " no answer could name the ad; add one to `ad`, as"
                f" `item: {{column: {self.ad_id}, kind: text}}`"
            )
        return self

    @property
    def key(self) -> str | None:
        """The ad's feature that is made of the column `ad_id`."""
        ids = {
            f.column or n: n for n, f in self.ad.items() if f.kind in ("text", "hex")
        }
        return ids.get(self.ad_id) if self.ad_id else None

    def features(self) -> Iterator[tuple[str, FeatureColumn, str]]:
        """Name, settings and column of every feature, the user's first."""
        for side in (self.user, self.ad):
            for name, feature in side.items():
                yield name, feature, feature.column or name

    def columns(self) -> tuple[str, ...]:
        """The columns of the file that are used, each once."""
        labels = [f.column or name for name, f in self.labels.items()]
        others = [self.time.column] if self.time else []
        others += [self.user_id] if self.user_id else []
        others += [self.propensity] if self.propensity else []
        features = [column for _, _, column in self.features()]
        return tuple(dict.fromkeys([*labels, *others, *features]))
