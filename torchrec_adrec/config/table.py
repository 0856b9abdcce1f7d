"""`data.table`: what the columns of one's own table mean. Example: docs/own_data.md.

A feature is its kind (`country: text`) or, where there is more to say, a block of keys
(`price: {kind: number, buckets: quantile}`); `column` is the name in the file, where it
is another one. Holds no torch and reads no data, as all settings.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from torchrec_adrec.config.base import Settings
from torchrec_adrec.schema import RESERVED


class _Column(Settings):
    column: str | None = None
    """Its name in the file; default: the feature's own."""


class TextColumn(_Column):
    """An id: text or integers, one row of a table for each value."""

    kind: Literal["text"]


class HexColumn(_Column):
    """An id of eight hexadecimal digits, as Criteo's hashes."""

    kind: Literal["hex"]


class NumberColumn(_Column):
    """A number; with `buckets` also an id, `<name>_bucket`: missing has one."""

    kind: Literal["number"]
    transform: Literal["log_standard", "standard", "log"] = "log_standard"
    buckets: Literal["log_square", "quantile"] | None = None


class SequenceColumn(_Column):
    """Several ids, the latest last: a list in Parquet, divided text in CSV."""

    kind: Literal["sequence"]
    max_length: Annotated[int, Field(ge=1)] = 20
    """The last so many are kept."""
    separator: Annotated[str, Field(min_length=1)] = " "
    """Between two ids, where the column is text."""
    shares_ids_with: str | None = None
    """The ad's feature whose values these are: what the user clicked before. It then
    has that feature's ids, and these ads are no negatives of the user."""


class LabelColumn(_Column):
    """What was observed; a missing value: not observed (the first label must be)."""

    kind: Literal["binary", "value"] = "binary"
    max_value: Annotated[float, Field(gt=0)] | None = None
    """A value above is cut to it."""

    @model_validator(mode="after")
    def _values_have_a_limit(self) -> Self:
        if (self.kind == "value") != (self.max_value is not None):
            raise ValueError("`kind: value` needs `max_value`, a binary label has none")
        return self


class TimeColumn(Settings):
    """When the row happened, for a split by time."""

    column: str
    kind: Literal["iso", "number"] = "iso"
    """iso: a date or time column, or text such as 2024-05-01T12:00:00 (UTC where it
    names no offset). number: integers of any unit, the same in all files."""


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _column_alone(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


# A feature names a column of the prepared data and a file of its vocabulary.
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
FeatureColumn = Annotated[
    Annotated[
        TextColumn | HexColumn | NumberColumn | SequenceColumn,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_kind_alone),
]


class TableConfig(Settings):
    """Columns of one's own Parquet, CSV or TSV files."""

    labels: Annotated[dict[Name, LabelColumn], Field(min_length=1)]
    """The first is the click: binary, and there in every row."""
    user: Annotated[dict[Name, FeatureColumn], Field(min_length=1)]
    """What is known of the user and the moment when an ad is asked for."""
    ad: Annotated[dict[Name, FeatureColumn], Field(min_length=1)]
    """What is known of the ad whoever sees it."""
    time: Annotated[TimeColumn, BeforeValidator(_column_alone)] | None = None
    """Default: the rows stand in time order."""
    user_id: str | None = None
    """The column that names the user, for a split by user."""
    ad_id: str | None = None
    """The column that names the ad, a feature of the ad's side too: an ad whose other
    values change stays one ad, and the latest ones count. Default: the same values are
    the same ad."""
    ignore: tuple[str, ...] = ()
    """Columns left out, as `tmp_*` too. Every other one must be used, so that none is
    forgotten by a slip."""
    missing: tuple[str, ...] = ("",)
    """Texts that mean: no value."""

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        taken = [name for name in RESERVED if name in {**self.user, **self.ad}]
        if taken:
            raise ValueError(
                f"{taken[0]} is a column that `prepare` writes; name the feature"
                f" otherwise, as `creative: {{column: {taken[0]}, kind: text}}`"
            )
        return self

    @model_validator(mode="after")
    def _no_label_is_a_feature(self) -> Self:
        labels = {f.column or name for name, f in self.labels.items()}
        both = sorted(labels & {column for _, _, column in self.features()})
        if both:
            raise ValueError(
                f"columns {both} are labels: known only after the ad was shown, they"
                " may be no features"
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
        """The ad's feature that `ad_id` is the column of."""
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
        features = [column for _, _, column in self.features()]
        return tuple(dict.fromkeys([*labels, *others, *features]))
