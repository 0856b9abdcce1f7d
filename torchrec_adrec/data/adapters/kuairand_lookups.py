"""KuaiRand's users, videos and histories: read once, joined to every impression."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from torchrec_adrec.data.adapters import columnar, delimited
from torchrec_adrec.errors import ConfigError, DataError

USERS = "user_features_pure.csv.gz"
VIDEOS = "video_features_basic_pure.csv.gz"
SEQUENCES = "user_sequences.parquet"

USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
USER_TEXTS = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    *(f"{name}_range" for name in USER_NUMBERS),
    *(f"onehot_feat{i}" for i in range(18)),
)
VIDEO_NUMBERS = ("video_duration",)
VIDEO_TEXTS = (
    *("author_id", "video_type", "upload_dt", "upload_type"),
    *("music_id", "music_type", "tag"),
)
WATCHED, LAST_TIME = "watch_seq", "last_time_ms"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lookups:
    """The features of users and videos, one row each; null where one is unknown.

    Attributes:
        users, videos: `user_id` or `video_id` and the features.
        histories: `user_id`, `watch_seq` (text, the latest last) and `last_time_ms`,
            when the last of them was watched.
    """

    users: pl.DataFrame
    videos: pl.DataFrame
    histories: pl.DataFrame

    @classmethod
    def load(cls, folder: Path, length: int) -> "Lookups":
        """Read the three files; a history keeps its last `length` videos.

        Raises:
            ConfigError: a file is missing.
            SchemaError: a file lacks a column.
            DataError: an id is missing or has two rows, or a number cannot be read.
        """
        return cls(
            _features(folder / USERS, "user_id", USER_TEXTS, USER_NUMBERS),
            _features(folder / VIDEOS, "video_id", VIDEO_TEXTS, VIDEO_NUMBERS),
            _histories(folder / SEQUENCES, length),
        )

    def join(self, rows: pl.DataFrame, unknown: "Unknown") -> pl.DataFrame:
        """The same rows in the same order, with their users, videos and histories.

        Args:
            rows: of a log, with `user_id`, `video_id` and `time_ms`.
            unknown: counts the rows of which a lookup knows nothing.
        """
        # The order must stay: rows are known by their place in the file.
        joined = rows
        for frame, key in (
            (self.users, "user_id"),
            (self.videos, "video_id"),
            (self.histories, "user_id"),
        ):
            joined = joined.join(frame, on=key, how="left", maintain_order="left")
        # A history that reaches to the row's own time may hold the very video that is
        # shown: it would give the label away, so this row goes without it.
        late = (joined[LAST_TIME] >= joined["time_ms"]).fill_null(False)
        unknown.rows += len(rows)
        unknown.users += len(rows.join(self.users, on="user_id", how="anti"))
        unknown.videos += len(rows.join(self.videos, on="video_id", how="anti"))
        unknown.late += joined.filter(late)["user_id"].to_list()
        watched = pl.when(~late).then(pl.col(WATCHED)).alias(WATCHED)
        return joined.with_columns(watched).drop(LAST_TIME)


@dataclass
class Unknown:
    """Counts of one log's rows of which the lookups know nothing.

    Attributes:
        rows: all rows of the log.
        users, videos: rows whose user or video has no features.
        late: the users of the rows that are no later than their user's history.
    """

    rows: int = 0
    users: int = 0
    videos: int = 0
    late: list[int] = field(default_factory=list)

    def report(self, path: Path, max_share: float) -> None:
        """Log how many rows had an unknown user or video, or a late history.

        Raises:
            DataError: more than `max_share` of the histories are too late.
        """
        if len(self.late) > max_share * self.rows:
            raise DataError(
                f"{path}: {len(self.late)} of {self.rows} rows are no later than their"
                f" user's history ({LAST_TIME} in {SEQUENCES}), first of user"
                f" {self.late[0]}; expected histories from before the log"
            )
        if self.users or self.videos:
            text = "%s: no features of the user in %d rows, of the video in %d"
            log.warning(text, path, self.users, self.videos)
        if self.late:
            text = "%s: a history too late, left out, in %d rows, as of users %s"
            log.warning(text, path, len(self.late), self.late[:3])


def _features(
    path: Path, key: str, texts: Sequence[str], numbers: Sequence[str]
) -> pl.DataFrame:
    if not path.is_file():
        raise ConfigError(f"data.raw: no such file: {path} (it belongs to the logs)")
    names = (key, *texts, *numbers)
    columnar.require(path, delimited.header(path), names)
    try:
        raw = pl.read_csv(path, columns=list(names), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from None
    ids = _numeric(raw, key, pl.Int64(), path)
    features = [_numeric(raw, name, pl.Float64(), path) for name in numbers]
    return _unique(raw.select(texts).with_columns(ids, *features), key, path, first=2)


def _numeric(raw: pl.DataFrame, name: str, kind: pl.DataType, path: Path) -> pl.Series:
    typed = raw[name].cast(kind, strict=False)
    unreadable = (typed.is_null() & raw[name].is_not_null()).arg_true()
    if len(unreadable):
        row = unreadable[0]
        line, value = row + 2, raw[name][row]  # line 1 is the header
        raise DataError(f"{path}:{line}: {name} is {value!r}, expected a number")
    return typed


def _histories(path: Path, length: int) -> pl.DataFrame:
    if not path.is_file():
        raise ConfigError(f"data.raw: no such file: {path} (it belongs to the logs)")
    columnar.require(path, columnar.types(path), ("user_id", LAST_TIME, WATCHED))
    raw = pl.read_parquet(path, columns=["user_id", LAST_TIME, WATCHED])
    watched = pl.col(WATCHED).list.tail(length).cast(pl.List(pl.String))
    history = pl.when(watched.list.len() > 0).then(watched).alias(WATCHED)
    return _unique(raw.with_columns(history), "user_id", path, first=1)


def _unique(frame: pl.DataFrame, key: str, path: Path, first: int) -> pl.DataFrame:
    """The frame, if every id has one row: the join would double its impressions."""
    faulty = (frame[key].is_null() | frame[key].is_duplicated()).arg_true()
    if len(faulty):
        row = faulty[0]
        raise DataError(
            f"{path}:{row + first}: {key} {frame[key][row]} is missing or stands there"
            " twice, expected one row for each"
        )
    return frame
