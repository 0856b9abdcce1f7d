"""`data.table`: the meaning of the columns of your own table (docs/own_data.md).

As all settings, this imports no torch and reads no data.
"""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from torchrec_adrec.config.base import Settings
from torchrec_adrec.config.table_columns import (
    FeatureColumn,
    HistoryColumn,
    LabelColumn,
    Name,
    SideTable,
    Time,
)
from torchrec_adrec.schema import RESERVED


class TableConfig(Settings):
    """Columns of your own Parquet, CSV or TSV files, or GroupLens's .dat files."""

    labels: Annotated[dict[Name, LabelColumn], Field(min_length=1)]
    """The first is the click: binary, and observed in every row."""
    user: Annotated[dict[Name, FeatureColumn], Field(min_length=1)]
    """Features of the user and of the moment when an ad is asked for."""
    ad: Annotated[dict[Name, FeatureColumn], Field(min_length=1)]
    """Features of the ad, the same whoever sees it."""
    time: Time | None = None
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
    names: tuple[str, ...] = ()
    """The names of all columns of the files of `data.raw`, if they are text without a
    header (a .dat file never has one)."""
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
