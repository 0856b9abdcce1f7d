"""`data.table`: the meaning of the columns of your own table (docs/own_data.md).

A feature is written as its kind (`country: text`) or, where there is more to say, as a
block of keys (`price: {kind: number, buckets: quantile}`). `column` is its name in the
file, if that is another one. As all settings, this imports no torch and reads no data.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

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
    negatives: Annotated[int, Field(ge=1, le=1000)] = 4
    """Drawn for each positive, with `positives_only`."""
    negatives_by: Literal["popularity", "uniform"] = "popularity"
    """popularity: an ad is as likely as it was taken until then. uniform: all ads that
    existed are equally likely."""

    @model_validator(mode="after")
    def _positives_have_no_column(self) -> Self:
        # Who names a column means it to count: rows that are none would be positives.
        ignored = self.model_fields_set & {"column", "at_least"}
        if self.positives_only and ignored:
            raise ValueError(
                "`positives_only` makes every row a positive and reads no column; leave"
                f" {' and '.join(sorted(ignored))} out, or leave `positives_only` out"
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
    """Parquet, CSV or TSV (also .gz) with one row for each id; it is held in memory."""
    key: str | None = None
    """Its column with the id; default: the name that the id has in the log."""


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
        TextColumn | HexColumn | NumberColumn | SequenceColumn | HistoryColumn,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_block_of_kind),
]


SideTable = Annotated[SideTableConfig, BeforeValidator(_block_of_file)]


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
    users: SideTable | None = None
    """A file whose columns may be features of the user, joined by `user_id`. A user
    without a row in it has missing values."""
    items: SideTable | None = None
    """A file whose columns may be features of the ad, joined by `ad_id`."""
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

    @model_validator(mode="after")
    def _what_is_made_of_the_log_knows_its_users(self) -> Self:
        first, *others = self.labels.values()
        if any(label.positives_only for label in others):
            raise ValueError("`positives_only` is for the first label, the click")
        if first.positives_only and self.propensity is not None:
            raise ValueError(
                "propensity: no policy has shown the ads that `positives_only` draws;"
                " leave one of them out"
            )
        histories = {n: f for n, f in self.user.items() if f.kind == "history"}
        if any(f.kind == "history" for f in self.ad.values()):
            raise ValueError("ad: a history is one of the user; put it under `user`")
        ids = [n for n, f in self.ad.items() if f.kind == "text"]
        for name, feature in histories.items():
            if isinstance(feature, HistoryColumn) and feature.of not in ids:
                raise ValueError(
                    f"user.{name}.of: expected a text feature of the ad, one of"
                    f" {', '.join(ids)}, found {feature.of!r}"
                )
        if self.user_id is None and (histories or first.positives_only):
            raise ValueError(
                f"{next(iter(histories), 'positives_only')} is made of the log:"
                " `user_id` must name the user's column"
            )
        return self

    @model_validator(mode="after")
    def _side_tables_have_an_id_in_the_log(self) -> Self:
        for name, table, needed in (
            ("users", self.users, "user_id"),
            ("items", self.items, "ad_id"),
        ):
            if table is not None and getattr(self, needed) is None:
                raise ValueError(
                    f"{name}: `{needed}` is missing; it names the column of the log by"
                    f" which {table.file} is joined"
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
        """Name, settings and column of every feature of a column, the user's first."""
        for side in (self.user, self.ad):
            for name, feature in side.items():
                if feature.kind != "history":
                    yield name, feature, feature.column or name

    def columns(self) -> tuple[str, ...]:
        """The columns of the file that are used, each once."""
        labels = [
            f.column or name for name, f in self.labels.items() if not f.positives_only
        ]
        others = [self.time.column] if self.time else []
        others += [self.user_id] if self.user_id else []
        others += [self.propensity] if self.propensity else []
        features = [column for _, _, column in self.features()]
        return tuple(dict.fromkeys([*labels, *others, *features]))
