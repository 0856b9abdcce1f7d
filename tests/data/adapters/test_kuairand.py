"""Labels, joins and histories of KuaiRand; nothing of what is known only afterwards."""

import gzip
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from raw_data import FIRST_MS, impression, write_kuairand, write_lookups

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import files_read, kuairand
from torchrec_adrec.data.adapters import kuairand_lookups as lookups
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import check_rows
from torchrec_adrec.errors import ConfigError, DataError, SchemaError
from torchrec_adrec.schema import SequenceFeature, Side

AFTERWARDS = """
is_click is_like is_follow is_comment is_forward is_hate long_view play_time_ms
profile_stay_time comment_stay_time is_profile_enter
watch_ratio finish like long_watch is_positive
"""


def read(config: DataConfig, bad: BadRows) -> pl.DataFrame:
    data = kuairand.open_data(config)
    return pl.concat(frame for path in data.files for frame in data.read(path, bad))


def with_log(folder: Path, rows: list[dict[str, Any]]) -> DataConfig:
    write_lookups(folder)
    log = pl.DataFrame(rows, infer_schema_length=None)
    log.write_parquet(folder / "log_b.parquet")
    return DataConfig(adapter="kuairand", raw=(str(folder),))


def test_values_are_read_and_joined(tmp_path: Path) -> None:
    rows = [impression(9) | {"user_id": 1, "video_id": 3, "hourmin": 2300, "tab": 4}]
    row = read(with_log(tmp_path, rows), BadRows()).row(0, named=True)
    assert (row["user_id"], row["video_id"]) == ("1", "3")
    assert (row["click"], row["engagement"], row["value"]) == (1, 0, pytest.approx(0.9))
    assert (row["hour"], row["tab"]) == ("23", "4")
    assert row["user_active_degree"] == "high" and row["fans_user_num"] == 1.0
    assert row["is_live_streamer"] == "-124"  # unknown is an id of its own
    assert row["tag"] == "20,43" and row["video_duration"] == 3000.0
    assert row["onehot_feat17"] is None and row["fans_user_num_range"] == "(0,10]"


def test_the_history_ends_with_the_latest(tmp_path: Path) -> None:
    rows = [impression(0) | {"user_id": user} for user in (1, 30, 2)]
    history = read(with_log(tmp_path, rows), BadRows())["watch_seq"].to_list()
    assert history[0] == ["0", "1", "2", "3", "4", "5"]
    assert history[1] == [str(video) for video in range(15, 35)]  # the last 20 of 35
    assert history[2] is None


def test_play_time_is_cut_at_three_minutes(tmp_path: Path) -> None:
    played = [0, 1_500, 180_000, 180_001, 898_147]
    rows = [impression(0) | {"play_time_ms": ms} for ms in played]
    value = read(with_log(tmp_path, rows), BadRows())["value"]
    assert value.to_list() == [0, 1.5, 180, 180, 180]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"user_id": None}, "user_id is missing, expected an id"),
        ({"video_id": None}, "video_id is missing, expected an id"),
        ({"time_ms": None}, "time_ms is missing"),
        ({"is_click": 2}, "is_click is 2, expected 0 or 1"),
        ({"long_view": None}, "long_view is missing, expected 0 or 1"),
        ({"play_time_ms": -1}, "play_time_ms is -1, expected milliseconds from 0"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, fault: dict[str, Any], reason: str) -> None:
    rows = [impression(0), impression(1), impression(2) | fault, impression(3)]
    bad = BadRows()
    assert len(read(with_log(tmp_path, rows), bad)) == 3
    start = f"{tmp_path / 'log_b.parquet'}:3: row 3: {reason}"
    assert bad.count == 1 and bad.first[0].startswith(start)


def test_unknown_users_and_videos_keep_their_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [impression(0) | {"user_id": 49}, impression(0) | {"video_id": 99}]
    with caplog.at_level(logging.WARNING):
        rows_read = read(with_log(tmp_path, rows), BadRows())
    assert rows_read["user_active_degree"].to_list() == [None, "high"]
    assert rows_read["author_id"].to_list() == ["0", None]
    assert "the user in 1 rows, of the video in 1" in caplog.text


def test_a_history_that_holds_the_row_itself_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = write_kuairand(tmp_path, rows=60, late_user=7)  # to the time of row 57
    with pytest.raises(DataError, match=r"2 of 60 rows .* user 7; expected histories"):
        read(raw.config, BadRows())
    lenient = raw.config.model_copy(update={"max_bad_rows": 0.05})
    with caplog.at_level(logging.WARNING):
        rows = read(lenient, BadRows())
    assert rows["watch_seq"].is_null().arg_true().to_list() == [2, 7, 52, 57]
    assert "left out, in 2 rows, as of users [7, 7]" in caplog.text


def test_a_changed_lookup_is_a_changed_data_set(tmp_path: Path) -> None:
    config = write_kuairand(tmp_path, rows=60).config
    folder = config.model_copy(update={"raw": (str(tmp_path),)})
    for raw in (config, folder):
        names = {path.name for path in files_read(raw)}
        assert names == {path.name for path in tmp_path.iterdir()}
    repeated = config.model_copy(update={"raw": (str(tmp_path), *config.raw)})
    with pytest.raises(ConfigError, match="named twice"):
        kuairand.open_data(repeated)


def test_the_ad_is_the_video() -> None:
    schema = kuairand.schema()
    ad = {"video_id", "author_id", "video_type", "upload_dt", "upload_type"}
    ad |= {"music_id", "music_type", "tag", "video_duration"}
    assert set(schema.sources_of(Side.AD)) == ad
    assert [f.name for f in schema.sequences_of(Side.USER)] == ["history"]
    assert {"user_id", "tab", "hour", "fans_user_num"} < set(
        schema.sources_of(Side.USER)
    )


@pytest.mark.parametrize("name", AFTERWARDS.split())
def test_what_is_known_afterwards_is_no_feature(name: str) -> None:
    schema = kuairand.schema()
    history = SequenceFeature(name="x", side=Side.USER, source=name)
    text = schema.sparse[0].model_copy(update={"name": "x", "source": name})
    for leak in (
        {"sparse": (*schema.sparse, text)},
        {"sequences": (history,)},
        {"dense": (schema.dense[0].model_copy(update={"source": name}),)},
    ):
        with pytest.raises(ConfigError, match=f"{name}: known only after"):
            kuairand.refuse_known_afterwards(schema.model_copy(update=leak))


def test_a_missing_file_beside_the_log_is_named(tmp_path: Path) -> None:
    config = with_log(tmp_path, [impression(0)])
    (tmp_path / lookups.SEQUENCES).unlink()
    with pytest.raises(ConfigError, match=lookups.SEQUENCES):
        kuairand.open_data(config)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    row = impression(0)
    del row["long_view"]
    with pytest.raises(SchemaError, match=r"log_b.*no column long_view; found user_id"):
        kuairand.open_data(with_log(tmp_path, [row]))


def test_a_user_who_is_there_twice_is_refused(tmp_path: Path) -> None:
    config = with_log(tmp_path, [impression(0)])
    path = tmp_path / lookups.USERS
    lines = gzip.decompress(path.read_bytes()).splitlines()
    path.write_bytes(gzip.compress(b"\n".join([*lines, lines[5]])))
    with pytest.raises(DataError, match=r":6: user_id 4 is missing or stands there tw"):
        kuairand.open_data(config)


@pytest.fixture(scope="module")
def real_rows(real_data: Path) -> tuple[list[int], pl.DataFrame, BadRows]:
    logs = ("log_standard_val.parquet", "log_standard_20220501_0508.parquet")
    raw = tuple(str(real_data / "kuairand_pure" / name) for name in logs)
    data, bad = kuairand.open_data(DataConfig(adapter="kuairand", raw=raw)), BadRows()
    files = [pl.concat(data.read(path, bad)) for path in data.files]
    check_rows(files[0], data)
    return [len(file) for file in files], pl.concat(files), bad


def test_real_rows(real_rows: tuple[list[int], pl.DataFrame, BadRows]) -> None:
    sizes, rows, bad = real_rows
    assert sizes == [94_784, 133_545] and bad.count == 0
    assert rows["time_ms"].min() == FIRST_MS
    assert not rows["time_ms"].is_sorted()  # the logs overlap at their border
    rates = rows.select(pl.col("click", "engagement").mean()).row(0)
    assert rates == pytest.approx((0.4419, 0.3108), abs=1e-4)
    unclicked = rows.filter(pl.col("click") == 0)
    assert unclicked["engagement"].sum() == 250  # labels are not nested
    assert (rows["value"] == 180).mean() == pytest.approx(0.0151, abs=1e-4)


def test_every_real_column_is_judged(real_data: Path) -> None:
    log = real_data / "kuairand_pure/log_standard_val.parquet"
    before = "user_id video_id time_ms date hourmin tab is_rand duration_ms source_file"
    video = "author_id tag upload_dt upload_date video_duration freshness_days"
    columns = set(pl.read_parquet_schema(log))
    assert columns - kuairand.KNOWN_AFTERWARDS == {*before.split(), *video.split()}


def test_real_histories(real_rows: tuple[list[int], pl.DataFrame, BadRows]) -> None:
    rows = real_rows[1]
    with_history = rows.filter(pl.col("watch_seq").is_not_null())
    assert with_history.height == 223_523  # 3 more hold the very video that is shown
    assert with_history["user_id"].n_unique() == 24_548
    assert rows["user_id"].n_unique() == 25_156
    assert not set(rows.columns) & kuairand.KNOWN_AFTERWARDS
