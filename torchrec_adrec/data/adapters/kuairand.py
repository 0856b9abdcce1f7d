"""KuaiRand-Pure: short-video impressions with click, long view and play time.

Source: https://kuairand.com (CC BY-SA 4.0), as a folder of
  log_*.parquet                        one row per impression; named by `data.raw`
  user_features_pure.csv.gz            one undated state of each user
  video_features_basic_pure.csv.gz     what is known of a video when it is uploaded
  user_sequences.parquet               `watch_seq`: what a user watched before the log

Three labels in every row: `click` (is_click), `engagement` (long_view) and `value`, the
seconds played. They are not nested: 250 of 228,329 rows are long views without a click.
5,460 rows repeat another one in every column; they are kept as they stand. A tag as
"20,43" stays one id: there are only 110, pairs included.

Left out: columns that are constant (is_lowactive_period, visible_status, is_rand), and
freshness_days, which changes by the day for the same video and so fits neither side.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import columnar
from torchrec_adrec.data.adapters import kuairand_lookups as lookups
from torchrec_adrec.data.adapters.adapter import Adapter, RawFiles
from torchrec_adrec.data.adapters.kuairand_lookups import Lookups, Unknown
from torchrec_adrec.data.adapters.labels import label_column
from torchrec_adrec.data.adapters.rows import ColumnRule, good_rows
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import DataSet, each_once
from torchrec_adrec.errors import ConfigError, SchemaError
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)

CONTEXT = ("tab", "hour")
HISTORY = "history"
HISTORY_LENGTH = 20

# 1.5% of the rows play longer, to 898 s (videos that loop, or lie forgotten); uncut,
# they hold 5% of all seconds but would rule every squared error.
VALUE_CAP_SECONDS = 180.0

CLICK, ENGAGEMENT = Label(name="click"), Label(name="engagement")
VALUE = Label(name="value", kind="value", max_value=VALUE_CAP_SECONDS)

KNOWN_AFTERWARDS = frozenset(
    {
        # What the user did with the video that was shown.
        *("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate"),
        *("long_view", "play_time_ms", "profile_stay_time", "comment_stay_time"),
        "is_profile_enter",
        # Made from those.
        *("watch_ratio", "finish", "like", "long_watch", "is_positive"),
    }
)
"""Columns of the log that no feature may be made of."""


def open_data(config: DataConfig) -> DataSet:
    """Open the logs of one folder, with the features and histories in it.

    Args:
        config: `raw` names the logs or their folder; the rows of two logs overlap in
            time, so the split goes by `time_ms` and not by the files' order.

    Raises:
        ConfigError: a file is missing.
        SchemaError: a file lacks a column.
        DataError: features or histories that cannot be used.
    """
    files = each_once(list(_logs(config.raw)))
    for path in files:
        _check_log(path)
    folders = {path.parent for path in files}
    if len(folders) > 1:
        raise ConfigError(f"data.raw: expected logs of one folder, found {folders}")
    joined = Lookups.load(folders.pop(), HISTORY_LENGTH)
    reader = _Reader(joined, config.chunk_megabytes << 20, config.max_bad_rows)
    return DataSet(
        schema(),
        files,
        reader.read,
        time="time_ms",
        user="user_id",
        lists_before_log=True,  # `Lookups.join` leaves out what is later than its row
    )


def files_read(config: DataConfig) -> tuple[Path, ...]:
    """The logs, and the lookup files of their folder."""
    logs = each_once(list(_logs(config.raw)))
    names = (lookups.USERS, lookups.VIDEOS, lookups.SEQUENCES)
    return (*logs, *(logs[0].parent / name for name in names))


ADAPTER: Adapter = RawFiles(open_data, files_read)


def schema() -> Schema:
    """The features and their sides; every number is also the id of its bucket."""
    user = ("user_id", *lookups.USER_TEXTS, *CONTEXT)
    ad = ("video_id", *lookups.VIDEO_TEXTS)
    schema = Schema(
        dense=(
            *(_number(name, Side.USER) for name in lookups.USER_NUMBERS),
            *(_number(name, Side.AD) for name in lookups.VIDEO_NUMBERS),
        ),
        sparse=(
            *(_text(name, Side.USER) for name in user),
            *(_bucket(name, Side.USER) for name in lookups.USER_NUMBERS),
            *(_text(name, Side.AD) for name in ad),
            *(_bucket(name, Side.AD) for name in lookups.VIDEO_NUMBERS),
        ),
        sequences=(
            SequenceFeature(
                name=HISTORY,
                side=Side.USER,
                source=lookups.WATCHED,
                max_length=HISTORY_LENGTH,
                shares_ids_with="video_id",
            ),
        ),
        labels=(CLICK, ENGAGEMENT, VALUE),
    )
    refuse_known_afterwards(schema)
    return schema


def refuse_known_afterwards(schema: Schema) -> None:
    """Refuse features that are known only once the video was shown.

    Raises:
        ConfigError: names them.
    """
    sources = {name for side in Side for name in schema.sources_of(side)}
    leaking = sorted(sources & KNOWN_AFTERWARDS)
    if leaking:
        raise ConfigError(
            f"{', '.join(leaking)}: known only after the impression, expected no"
            " feature made of it; use it as a label or leave it out"
        )


def _text(name: str, side: Side) -> SparseFeature:
    return SparseFeature(name=name, side=side, source=name, kind="text")


def _number(name: str, side: Side) -> DenseFeature:
    return DenseFeature(name=name, side=side, source=name)


def _bucket(name: str, side: Side) -> SparseFeature:
    bucket = f"{name}_bucket"
    return SparseFeature(
        name=bucket, side=side, source=name, kind="number", buckets="quantile"
    )


def _logs(raw: Iterable[str]) -> Iterator[Path]:
    if not raw:
        raise ConfigError("data.raw: none given; expected the logs or their folder")
    for path in map(Path, raw):
        logs = sorted(path.glob("log_*.parquet")) if path.is_dir() else [path]
        if not logs or not all(log.is_file() for log in logs):
            raise ConfigError(f"data.raw: no such file: {path}")
        yield from logs


def _required(name: str, good: pl.Expr, expected: str) -> ColumnRule:
    fault = ~good.fill_null(False)
    return ColumnRule(name, name, pl.col(name), fault, expected)


def _label(label: Label, source: str) -> ColumnRule:
    column = pl.col(source)
    return label_column(label, source, column, column, required=True)


def _seconds() -> ColumnRule:
    source, expected = "play_time_ms", "milliseconds from 0"
    played = pl.col(source)
    return label_column(VALUE, source, played / 1000, played, True, expected)


COLUMNS = (
    _required("user_id", pl.col("user_id").is_not_null(), "an id"),
    _required("video_id", pl.col("video_id").is_not_null(), "an id"),
    _required("time_ms", pl.col("time_ms") > 0, "milliseconds since 1970"),
    _label(CLICK, "is_click"),
    _label(ENGAGEMENT, "long_view"),
    _seconds(),
    ColumnRule("tab", "tab", pl.col("tab"), pl.lit(False), "a number"),
    # 2300 is 11 p.m.; the minutes are always 0.
    ColumnRule("hour", "hourmin", pl.col("hourmin") // 100, pl.lit(False), "a number"),
)
"""The columns that are made of a log; the others come from the lookups."""

TEXTS = ("user_id", "video_id", *CONTEXT)


def _check_log(path: Path) -> None:
    types, names = columnar.types(path), [c.source for c in COLUMNS]
    columnar.require(path, types, names)
    others = {name: types[name] for name in names if not types[name].is_integer()}
    if others:
        raise SchemaError(f"{path}: columns {others}, expected integers")


@dataclass(frozen=True)
class _Reader:
    lookups: Lookups
    chunk_bytes: int
    max_late_share: float

    def read(self, path: Path, bad: BadRows) -> Iterator[pl.DataFrame]:
        """`DataSet.read`; after a file, the rows that no lookup knew are logged."""
        names = [column.source for column in COLUMNS]
        unknown = Unknown()
        for rows in columnar.batches(path, names, self.chunk_bytes):
            good = good_rows(rows, COLUMNS, bad)
            joined = self.lookups.join(good, unknown)
            if len(joined):
                yield joined.with_columns(pl.col(TEXTS).cast(pl.String))
        unknown.report(path, self.max_late_share)
