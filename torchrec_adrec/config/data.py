"""Settings of the data: raw files, splits, ids, and the synthetic world."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from torchrec_adrec.config.base import Count, Fraction, Rate, Seed, Settings
from torchrec_adrec.config.table import TableConfig
from torchrec_adrec.schema import MOST_ROWS

Bounds = Literal["raise", "clamp", "unknown"]


class SplitConfig(Settings):
    """The rows that are trained on, and those that are held out."""

    by: Literal["time", "user", "random", "leave_one_out", "files"] = "time"
    """time: the latest rows are held out, as a live system meets them. user: all rows
    of a user are in one split. random: row by row, so that training sees the future.
    leave_one_out: the last click of each user is the test and the one before validates,
    as papers on sequences have it; the shares do not count. files: the last file of
    `data.raw` is the test, for data that come with a test file; of the rows of the
    others, the share valid / (train + valid) is drawn to validate."""
    train: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of the rows that is trained on; the three shares add up to 1."""
    valid: Fraction = 0.1
    """Share of the rows on which settings, checkpoints and calibration are chosen."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the rows by which the models are judged at the end."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.valid + self.test
        if abs(total - 1) > 1e-9:  # 0.7 + 0.2 + 0.1 is not 1 in binary
            raise ValueError(f"train + valid + test must be 1, found {total:g}")
        return self


class SyntheticConfig(Settings):
    """A synthetic world whose law is known (docs/known_world.md), without download."""

    rows: Count = 200_000
    """Number of impressions."""
    ads: Count = 2_000
    """Number of ads, those that are born later among them."""
    users: Count = 20_000
    """Number of users."""
    days: Count = 14
    """Length of the log."""
    cold_share: Fraction = 0.3
    """Share of the ads that do not exist on the first day."""
    cohorts: Count = 13
    """Times, evenly spread over the days, at which the cold ads are born."""
    affinity: Rate = 6.0
    """Weight of user . ad in the click's logit; 0: one ranking is best for everyone."""
    drift: Rate = 0.5
    """Angle in radians by which tastes turn from the first day to the last."""
    position_bias: Rate = 0.5
    """Power by which users look at lower positions less; 0: they look at all alike."""


class MovieLabConfig(Settings):
    """A small world of numbers alone, without any id (`data.adapter: movie_lab`)."""

    rows: Count = 60_000
    """Pairs of a user and a movie, each at most once."""
    users: Count = 1_000
    """Number of users, each with 13 numbers."""
    movies: Count = 500
    """Number of movies, each with 12 numbers."""

    @model_validator(mode="after")
    def _rows_are_different_pairs(self) -> Self:
        if self.rows > self.users * self.movies:
            raise ValueError(
                f"{self.users} users and {self.movies} movies make"
                f" {self.users * self.movies} pairs, found {self.rows} rows"
            )
        return self


class SequencesConfig(Settings):
    """Files with a line a user, `user item item ...` (`data.adapter: sequences`)."""

    ordered: bool = True
    """Whether the items of a line stand in the order in which the user took them. Only
    then is there a history, and a split by leave_one_out."""
    length: Count = 50
    """The number of earlier items that the history keeps, the latest ones."""
    user_id: bool | None = None
    """Whether the user's id is a feature; null: only where there is no history."""
    negatives: Annotated[int, Field(ge=0, le=1000)] = 4
    """Drawn for each item, as those of `positives_only` are (docs/own_data.md). 0:
    none; towers are then trained by their contrast alone (`retrieval.alpha: 0`), and a
    ranker has nothing to learn."""
    negatives_by: Literal["popularity", "uniform"] = "uniform"
    """uniform: all items are equally likely. popularity: as often as they were taken
    until then."""

    @model_validator(mode="after")
    def _the_user_is_something(self) -> Self:
        if not self.ordered and self.user_id is False:
            raise ValueError(
                "without an order there is no history, and with user_id=false nothing"
                " would be known of a user; leave one of the two out"
            )
        return self

    @property
    def has_user(self) -> bool:
        """Whether the user's id is a feature."""
        return not self.ordered if self.user_id is None else self.user_id


class NumbersConfig(Settings):
    """How the integers of Criteo rows become inputs."""

    transform: Literal["log_standard", "standard", "log"] = "log_standard"
    """log_standard: sign(x) log(1 + |x|), then mean 0 and deviation 1. standard:
    without the logarithm. log: the logarithm alone."""
    buckets: Literal["log_square", "quantile"] | None = "log_square"
    """Each number is also an id, made discrete like this; null: a number only."""


Strength = Annotated[float, Field(gt=0, le=10_000)]


class StatisticsConfig(Settings):
    """Out-of-fold statistics of values, as dense features of their side."""

    folds: Annotated[int, Field(ge=2, le=100)] = 10
    """Parts of the training rows. A row sees the counts of all parts but its own."""
    strengths: Annotated[tuple[Strength, ...], Field(min_length=1)] = (10, 100)
    """Numbers of rows by which a value's rate is drawn towards the rate of all rows,
    with a feature for each."""
    pairs: Annotated[int, Field(ge=0)] = 0
    """Pairs of columns of one side that get statistics too: those with the largest gain
    of log loss on a sample of the training rows."""
    cross_pairs: Annotated[int, Field(ge=0)] = 0
    """Pairs of a user's and an ad's column, chosen in the same way. They are numbers of
    the ranker alone, and are dropped again, all of them, unless they lower the log loss
    of the validation rows by more than its noise (`data/report.md` says which). In the
    demo's world segment x campaign alone is worth an AUC of 0.06."""
    pair_strength: Strength = 30
    """The same as `strengths`, of a pair."""
    buckets: Annotated[int, Field(ge=2)] = 32
    """Quantile buckets of a number, whose statistics are those of its bucket."""
    min_count: Count = 2
    """A value with fewer training rows counts as one that was never seen."""
    keep_folds: bool = False
    """Keep the fold of every training row, the keys of its values and the counts of
    every fold, which `ranking.retrieved_negatives` needs: rows that join a training
    row's user with another ad must see the counts that this row sees."""

    @model_validator(mode="after")
    def _strengths_differ(self) -> Self:
        if len({f"{strength:g}" for strength in self.strengths}) < len(self.strengths):
            raise ValueError(f"strengths must differ, found {self.strengths}")
        return self


class DataConfig(Settings):
    """Raw files and how they become ids and floats."""

    adapter: str = "criteo"
    """Which data set the files are: criteo, kuairand, synthetic or movie_lab (made
    here), sequences (a line a user: `user item item ...`), or table (your own
    columns)."""
    raw: tuple[str, ...] = ()
    """Raw files in time order; one path may be written without a list. A pattern such
    as day_*.gz means its files in name order, day_2 before day_10."""
    labelled: bool = True
    """Whether Criteo files without a header begin each line with the label."""
    ad_features: tuple[str, ...] = ("C2", "C14", "C15", "C18", "C25")
    """Criteo's columns that describe the ad; all others describe the user."""
    allow_leaky_sides: bool = False
    """Accept a user column that determines an ad column, or a sequence that holds the
    ad of its own row, in over 95% of its rows."""
    allow_varying_ads: bool = False
    """Accept more than two ads for each value of the column that may be the ad's id:
    another of the ad's columns varies, and each of its values makes an ad."""
    seed: Seed | None = None
    """Draws the split, the negatives and the artificial worlds in place of `seed`;
    null: `seed` does. A sweep over seeds sets it, so that all of them are trained and
    judged on the same rows, which are then prepared once."""
    split: SplitConfig = SplitConfig()
    numbers: NumbersConfig = NumbersConfig()
    ids: Literal["frequency", "hash"] = "frequency"
    """frequency: a vocabulary of the training rows. hash: there is no vocabulary and no
    unknown value, and some values share a row of the table."""
    min_count: Count = 5
    """Values seen less often in training become `unknown` (id 1)."""
    statistics: StatisticsConfig | None = None
    """Click rates and counts of values and pairs as dense features (docs/data.md);
    null: none."""
    # At least 3: the rows 0 and 1 are those of missing and unknown values.
    hash_size: Annotated[int, Field(ge=3, le=MOST_ROWS)] = 100_000
    """Rows of every table with `ids: hash`."""
    bounds: Bounds = "raise"
    """The answer to an id outside its table, a number that is not finite or a label
    outside its range. raise: stop and name it. clamp: take the nearest valid value.
    unknown: take the unknown id, the mean, or a label that was not observed. Repairs
    are counted and logged. In `prepare` a number that is not finite always becomes the
    mean."""
    max_bad_rows: Fraction = 0.001
    """Share of unreadable lines above which `prepare` stops."""
    max_unmatched_rows: Fraction = 0.1
    """Share of the rows whose user or ad has no row in its side table (`table.users`,
    `table.items`) above which `prepare` stops: ids that are written in another way, as
    7 and 07, match none. Fewer rows keep missing values, are counted and named."""
    chunk_megabytes: Count = 32
    """Raw text held in memory at a time."""
    synthetic: SyntheticConfig = SyntheticConfig()
    movie_lab: MovieLabConfig = MovieLabConfig()
    sequences: SequencesConfig = SequencesConfig()
    table: TableConfig | None = None
    """The meaning of the columns, for the adapter `table`: docs/own_data.md."""

    @model_validator(mode="before")
    @classmethod
    def _one_path_is_a_list(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("raw"), str):
            return {**values, "raw": [values["raw"]]}
        return values
