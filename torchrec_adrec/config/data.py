"""Settings of the data: raw files, splits, ids, and the world that is made here."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from torchrec_adrec.config.base import Count, Fraction, Rate, Settings
from torchrec_adrec.config.table import TableConfig
from torchrec_adrec.schema import MOST_ROWS

Bounds = Literal["raise", "clamp", "unknown"]


class SplitConfig(Settings):
    """Which rows are trained on, and which are held out."""

    by: Literal["time", "user", "random"] = "time"
    """time: the latest rows are held out, as a live system meets them. user: all rows
    of a user stand in one split. random: row by row, which lets the future in."""
    train: Annotated[float, Field(gt=0, lt=1)] = 0.8
    valid: Fraction = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.valid + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + valid + test must be 1, found {total:g}")
        return self


class SyntheticConfig(Settings):
    """An ad world whose law is known (docs/known_world.md); needs no download."""

    rows: Count = 200_000
    ads: Count = 2_000
    users: Count = 20_000
    days: Count = 14
    """Length of the log."""
    cold_share: Fraction = 0.3
    """Share of the ads that are not there on the first day."""
    cohorts: Count = 13
    """Times, evenly spread over the days, at which the cold ads are born."""
    affinity: Rate = 6.0
    """Weight of user . ad in the click's logit; 0: one ranking is best for everyone."""
    drift: Rate = 0.5
    """Angle in radians by which tastes turn from the first day to the last."""
    position_bias: Rate = 0.5
    """Power by which examination falls with the position; 0: all are examined."""


class NumbersConfig(Settings):
    """How the integers of Criteo rows become inputs."""

    transform: Literal["log_standard", "standard", "log"] = "log_standard"
    buckets: Literal["log_square", "quantile"] | None = "log_square"
    """Each number is also an id, made discrete like this; null: a number only."""


class DataConfig(Settings):
    """Raw files and how they become ids and floats."""

    adapter: Literal["criteo", "synthetic", "kuairand", "table"] = "criteo"
    raw: tuple[str, ...] = ()
    """Raw files, in time order; one path may be written without a list. A pattern, as
    day_*.gz, stands for its files in name order, day_2 before day_10."""
    labelled: bool = True
    """Whether Criteo files without a header have the label in front."""
    ad_features: tuple[str, ...] = ("C2", "C14", "C15", "C18", "C25")
    """The raw columns that describe the ad; every other feature is the user's side."""
    allow_leaky_sides: bool = False
    """Go on although a user column determines an ad column, or a sequence holds the ad
    of its own row, in over 95% of its rows."""
    allow_varying_ads: bool = False
    """Go on although there are more than two ads for each value of the column that may
    be the ad's id: another of the ad's columns varies, and each value makes an ad."""
    split: SplitConfig = SplitConfig()
    numbers: NumbersConfig = NumbersConfig()
    ids: Literal["frequency", "hash"] = "frequency"
    """frequency: a vocabulary of the training rows. hash: no vocabulary is held, no
    value is unknown, and some values share a row."""
    min_count: Count = 5
    """Values seen less often in training become `unknown` (id 1)."""
    hash_size: Annotated[int, Field(ge=3, le=MOST_ROWS)] = 100_000
    """Rows of every table with `ids: hash`."""
    bounds: Bounds = "raise"
    """What to do with an id outside its table, a number that is not finite or a label
    outside its range: stop and name it; take the nearest valid value; or take the
    unknown id, the mean, and a label that was not observed. Counted and logged. In
    `prepare` a number that is not finite becomes the mean either way."""
    max_bad_rows: Fraction = 0.001
    """Share of unreadable lines above which `prepare` stops."""
    chunk_megabytes: Count = 32
    """Raw text held in memory at a time."""
    synthetic: SyntheticConfig = SyntheticConfig()
    table: TableConfig | None = None
    """What the columns mean, for the adapter `table`: docs/own_data.md."""

    @model_validator(mode="before")
    @classmethod
    def _one_path_is_a_list(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("raw"), str):
            return {**values, "raw": [values["raw"]]}
        return values
