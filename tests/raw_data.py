"""Small known raw files for every adapter, each with one missing value, one bad row.

A new data set needs one function here and its line in `WRITERS`: the contract tests
(`contracts/test_adapters.py`) and the rest of the suite then ask it all they ask.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from conftest import criteo_line

from torchrec_adrec.config.data import DataConfig, MovieLabConfig, SyntheticConfig
from torchrec_adrec.data.adapters import kuairand_lookups as lookups
from torchrec_adrec.data.adapters import open_data, table
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import DataSet, check_rows
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.runtime.ranks import SingleProcess

FIRST_MS = 1_650_812_741_436
MISSING = 2  # the row (from 0) that lacks a value
BAD = 4_321  # the row (from 0) that cannot be used
ROWS = 12_000  # more than 1 MB in every form: data.chunk_megabytes = 1 cuts it


@dataclass(frozen=True)
class Raw:
    """Files on disk, and what is known of them.

    Attributes:
        folder: of the files.
        config: the settings that read them.
        rows: their rows, good and bad.
        missing: a raw column that is null in row MISSING; None: none may be missing.
        bad: start of the message on row BAD; None: there is no bad row.
    """

    folder: Path
    config: DataConfig
    rows: int
    missing: str | None
    bad: str | None

    def open_data(self, config: DataConfig | None = None) -> DataSet:
        """Open them as `prepare` does, with other settings if need be."""
        return open_data(config or self.config, 0, self.folder, SingleProcess())


def write_criteo(folder: Path) -> Raw:
    lines = [criteo_line(i, i % 3 == 0) for i in range(ROWS)]
    fields = lines[MISSING].split("\t")
    lines[MISSING] = "\t".join([*fields[:14], "", *fields[15:]])  # C1
    lines[BAD] = lines[BAD].replace("\t", "\tx", 1)
    path = folder / "raw.tsv"
    path.write_text("\n".join(lines) + "\n")
    config = DataConfig(adapter="criteo", raw=(str(path),))
    return Raw(folder, config, ROWS, "C1", f"{path}:{BAD + 1}: I1 is 'x")


def write_synthetic(folder: Path) -> Raw:
    world = SyntheticConfig(rows=ROWS, ads=200, users=100)
    config = DataConfig(adapter="synthetic", synthetic=world)
    return Raw(folder, config, ROWS, None, None)


def write_movie_lab(folder: Path) -> Raw:
    world = MovieLabConfig(rows=ROWS, users=300, movies=100)
    config = DataConfig(adapter="movie_lab", movie_lab=world)
    return Raw(folder, config, ROWS, None, None)


def impression(i: int) -> dict[str, Any]:
    return {
        "user_id": i % 50,
        "video_id": i % 40,
        "hourmin": 100 * (i % 24),
        "time_ms": FIRST_MS + 1_000 * i,
        "is_click": int(i % 3 == 0),
        "long_view": int(i % 5 == 0),
        "play_time_ms": 100 * (i % 4_000),
        "tab": i % 4,
        "watch_ratio": 0.5,
    }


def write_kuairand(folder: Path, rows: int = ROWS, late_user: int = -1) -> Raw:
    log = pl.DataFrame([impression(i) for i in range(rows)])
    negative = pl.when(pl.int_range(pl.len()) == BAD).then(-1)
    path = folder / "log_a.parquet"
    log.with_columns(
        negative.otherwise(pl.col("play_time_ms")).alias("play_time_ms")
    ).write_parquet(path)
    write_lookups(folder, late_user)
    config = DataConfig(adapter="kuairand", raw=(str(path),))
    bad = f"{path}:{BAD + 1}: row {BAD + 1}: play_time_ms is -1"
    return Raw(folder, config, rows, "watch_seq", bad)


def write_lookups(folder: Path, late_user: int = -1) -> None:
    """Users 0..48 (49 is unknown), videos 0..39, histories of all users but 2."""
    users = ["user_id,user_active_degree,is_live_streamer,is_video_author"]
    users[0] += "".join(f",{n},{n}_range" for n in lookups.USER_NUMBERS)
    users[0] += "".join(f",onehot_feat{i}" for i in range(18))
    # A count and its range for each number; the last one-hot column is always missing.
    users += [
        f"{u},high,-124,1" + f',{u},"(0,10]"' * 4 + f",{u % 3}" * 17 + ","
        for u in range(49)
    ]
    videos = ["video_id,author_id,video_type,upload_dt,upload_type"]
    videos[0] += ",video_duration,music_id,music_type,tag"
    videos += [
        f'{v},{v % 9},NORMAL,2022-04-10,Web,{v}000.0,77,9.0,"20,43"' for v in range(40)
    ]
    _gzip(folder / lookups.USERS, users)
    _gzip(folder / lookups.VIDEOS, videos)
    with_history = [u for u in range(50) if u != 2]
    pl.DataFrame(
        {
            "user_id": with_history,
            "last_time_ms": [
                FIRST_MS + 57_000 if u == late_user else FIRST_MS - 1
                for u in with_history
            ],
            "watch_seq": [list(range(u + 5)) for u in with_history],
        }
    ).write_parquet(folder / lookups.SEQUENCES)


def _gzip(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


MAPPING: dict[str, Any] = {
    "labels": {
        "click": {"column": "clicked"},
        "value": {"column": "revenue", "kind": "value", "max_value": 100},
    },
    "time": {"column": "ts", "kind": "number"},
    "user_id": "uid",
    "user": {
        "uid": "text",
        "country": "text",
        "age": {"kind": "number", "buckets": "log_square"},
        "history": {"column": "seen", "kind": "sequence", "max_length": 3},
    },
    "ad": {"creative": {"column": "ad_id", "kind": "text"}, "price": "number"},
    "ignore": ["note*"],
}


def click(i: int) -> dict[str, Any]:
    return {
        "uid": f"user {i % 50}",
        "country": None if i == MISSING else "NL",
        "age": i % 80,
        "seen": [f"a{j}" for j in range(i % 6)],
        "ad_id": i % 40,
        "price": i % 100 + 0.5,
        "clicked": int(i % 3 == 0),
        "revenue": 2.0 * (i % 90) if i % 3 == 0 else None,
        "ts": FIRST_MS + i,
        "notes": "," * 60,
    }


def table_config(path: Path, **changes: object) -> DataConfig:
    values = {"adapter": "table", "raw": str(path), "table": {**MAPPING, **changes}}
    return DataConfig.model_validate(values)


def write_table_parquet(folder: Path) -> Raw:
    rows = [click(i) for i in range(ROWS)]
    rows[BAD]["clicked"] = 2
    path = folder / "clicks.parquet"
    pl.DataFrame(rows).write_parquet(path)
    bad = f"{path}:{BAD + 1}: row {BAD + 1}: clicked is 2, expected 0 or 1"
    return Raw(folder, table_config(path), ROWS, "country", bad)


def write_table_csv(folder: Path) -> Raw:
    rows = [click(i) for i in range(ROWS)]
    rows[BAD]["clicked"] = 2
    path = folder / "clicks.csv.gz"
    history = pl.col("seen").list.join(" ")
    text = pl.DataFrame(rows).with_columns(history).write_csv()
    path.write_bytes(gzip.compress(text.encode(), 1))
    bad = f"{path}:{BAD + 2}: clicked is '2', expected 0 or 1"  # line 1: the header
    return Raw(folder, table_config(path), ROWS, "country", bad)


def write_sequences(folder: Path) -> Raw:
    """A line a user of three items each, but for one line without items."""
    lines = [
        " ".join([f"user-{i:0100d}", *(f"item-{(i + j) % 40:0100d}" for j in range(3))])
        for i in range(ROWS // 3 + 1_000)
    ]
    lines[BAD] = lines[BAD].split()[0]
    path = folder / "sequences.txt.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), 1))
    config = DataConfig.model_validate(
        {"adapter": "sequences", "raw": str(path), "split": {"by": "leave_one_out"}}
    )
    bad = f"{path}:{BAD + 1}: line is 'user-"
    return Raw(folder, config, 3 * (len(lines) - 1) + 1, None, bad)


WRITERS: dict[str, Callable[[Path], Raw]] = {
    "criteo": write_criteo,
    "synthetic": write_synthetic,
    "movie_lab": write_movie_lab,
    "kuairand": write_kuairand,
    "sequences": write_sequences,
    "table-csv": write_table_csv,
    "table-parquet": write_table_parquet,
}


def read_table(config: DataConfig, bad: BadRows) -> pl.DataFrame:
    """All rows of your own table, as `prepare` reads and checks them."""
    data = table.open_data(config)
    frames = [frame for path in data.files for frame in data.read(path, bad)]
    for frame in frames:
        check_rows(frame, data)
    return pl.concat(frames)


def prepare_table(
    out: Path, rows: pl.DataFrame, table_settings: dict[str, Any], **data: Any
) -> dict[str, Any]:
    """Prepare your own table, written as one CSV; returns the report."""
    out.mkdir(exist_ok=True)
    rows.write_csv(out.parent / f"{out.name}.csv")
    config = DataConfig.model_validate(
        {
            "adapter": "table",
            "raw": str(out.parent / f"{out.name}.csv"),
            "table": table_settings,
            "min_count": 2,
            **data,
        }
    )
    prepare(config, table.open_data(config), out)
    return dict(json.loads((out / "report.json").read_text()))
