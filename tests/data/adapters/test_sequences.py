"""Files of a line a user: order, histories, splits, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.config.run import Config
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.data.adapters import sequences
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import check_rows
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.errors import ConfigError

LINES = [[f"u{u}", *(f"i{(u * j + j) % 11}" for j in range(1, 7))] for u in range(20)]


def write(path: Path, lines: list[list[str]]) -> Path:
    path.write_text("".join(" ".join(line) + "\n" for line in lines))
    return path


def config(paths: list[Path], by: str, **settings: Any) -> DataConfig:
    return DataConfig.model_validate(
        {
            "adapter": "sequences",
            "raw": [str(path) for path in paths],
            "split": {"by": by},
            "sequences": settings,
            "min_count": 1,
        }
    )


def rows_of(settings: DataConfig) -> tuple[pl.DataFrame, BadRows]:
    data, bad = sequences.open_data(settings), BadRows()
    frames = [frame for path in data.files for frame in data.read(path, bad)]
    for frame in frames:
        check_rows(frame, data)
    return pl.concat(frames), bad


def prepared(settings: DataConfig, out: Path) -> pl.DataFrame:
    """The rows that were written, with raw items and their split."""
    out.mkdir()
    prepare(settings, sequences.open_data(settings), out)
    parts = [
        pl.read_parquet(out / split / "*.parquet").with_columns(split=pl.lit(split))
        for split in ("train", "valid", "test")
    ]
    catalog = pl.read_parquet(out / "catalog.parquet")
    names = catalog.select("ad_id", name=pl.col("raw_item"))
    return pl.concat(parts).join(names, on="ad_id")


def test_every_item_is_a_row_in_its_place(tmp_path: Path) -> None:
    rows, bad = rows_of(config([write(tmp_path / "a.txt", LINES)], "leave_one_out"))
    assert not bad.count
    for line in LINES:
        of_user = rows.filter(pl.col("user") == line[0])
        assert of_user["item"].to_list() == line[1:]
        assert of_user[sequences.PLACE].to_list() == list(range(6))


def test_the_last_item_tests_and_the_history_ends_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", LINES)
    rows = prepared(config([path], "leave_one_out", length=3), tmp_path / "out")
    clicks = rows.filter(pl.col("click") == 1)
    for split, place in (("test", -1), ("valid", -2)):
        actual = clicks.filter(pl.col("split") == split)
        assert sorted(actual["name"]) == sorted(line[place] for line in LINES)
        ids = dict(clicks.select("name", "item").rows())
        columns = [f"history:{i}" for i in range(3)]
        for name, *history in actual.select("name", *columns).rows():
            before = [
                {ids[item] for item in line[place - 3 : place]}
                for line in LINES
                if line[place] == name
            ]
            assert set(history) in before
    assert clicks.height == 120


def test_a_test_file_stays_the_test_and_validation_is_drawn_beside_it(
    tmp_path: Path,
) -> None:
    train = write(tmp_path / "train.txt", LINES)
    test = write(tmp_path / "test.txt", [[line[0], "i7", "i0"] for line in LINES])
    settings = config([train, test], "files", ordered=False)
    clicks = prepared(settings, tmp_path / "out").filter(pl.col("click") == 1)
    held = clicks.filter(pl.col("split") == "test")
    assert sorted(held["name"]) == sorted(20 * ["i7", "i0"])
    sizes = dict(clicks.group_by("split").len().rows())
    # One ninth of the 120 training rows on average; the seed decides the exact number.
    assert 4 <= sizes["valid"] <= 25 and sizes["train"] + sizes["valid"] == 120
    assert "history" not in clicks.columns and "user" in clicks.columns
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["split_by"] == "files"


def test_a_later_file_is_later_than_every_place_of_an_earlier_one(
    tmp_path: Path,
) -> None:
    """A user of both files would else have two first items."""
    first = write(tmp_path / "a.txt", [["u", "a", "b", "c"]])
    second = write(tmp_path / "b.txt", [["u", "d", "e"]])
    rows, _ = rows_of(config([first, second], "leave_one_out"))
    assert "".join(rows.sort(sequences.PLACE)["item"]) == "abcde"
    assert rows[sequences.PLACE].n_unique() == 5


def test_without_an_order_no_item_is_before_another(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", LINES)
    rows, _ = rows_of(config([path], "random", ordered=False))
    assert rows[sequences.PLACE].n_unique() == 1
    data = sequences.open_data(config([path], "random", ordered=False))
    assert not data.histories and not data.schema.sequences


def test_no_negatives_are_drawn_where_none_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", LINES)
    given = config([path], "leave_one_out", negatives=0)
    with pytest.raises(ValueError, match=r"set retrieval\.alpha=0"):
        Config(data=given)
    assert Config(data=given, retrieval=RetrievalConfig(alpha=0)).positives_alone
    out = tmp_path / "data"
    out.mkdir()
    prepare(given, sequences.open_data(given), out)
    rows = pl.read_parquet([*out.glob("t*/*.parquet"), *out.glob("valid/*.parquet")])
    assert len(rows) == sum(len(line) - 1 for line in LINES)
    assert rows["click"].min() == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"u9", "line is 'u9', expected a user and one item"),
        (b"", "line is '', expected a user and one item"),
        (b"u9 \xe9\xe8", "in UTF-8"),
        (b"u1 i3", "user is 'u1', expected a user without a line above"),
    ],
)
@pytest.mark.parametrize("in_one_block", [True, False])
def test_a_line_that_cannot_be_used_is_named(
    tmp_path: Path, line: bytes, reason: str, in_one_block: bool
) -> None:
    path = tmp_path / "a.txt"
    filler = (
        b""
        if in_one_block
        else b"".join(b"f%d %s\n" % (i, b"i" * 100) for i in range(4_000))
    )
    path.write_bytes(b"u0 i1 i2\r\nu1 i1 i2\n" + filler + line + b"\nu2  i1\ti2 \n")
    settings = config([path], "leave_one_out").model_copy(update={"chunk_megabytes": 1})
    rows, bad = rows_of(settings)
    number = 3 + filler.count(b"\n")
    assert bad.count == 1 and bad.first[0].startswith(f"{path}:{number}: ")
    assert reason in bad.first[0]
    of_two = rows.filter(pl.col("user") == "u2")
    assert of_two["item"].to_list() == ["i1", "i2"]
    assert rows.filter(pl.col("user") == "u0")["item"].to_list() == ["i1", "i2"]


def test_splits_that_need_what_is_not_there_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", LINES)
    for settings, message in (
        (config([path], "time"), "no time by which two users compare"),
        (config([path], "leave_one_out", ordered=False), "no item is the last one"),
    ):
        with pytest.raises(ConfigError, match=message):
            sequences.open_data(settings)
    settings = config([path], "files", ordered=False)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"found .*a\.txt alone"):
        prepare(settings, sequences.open_data(settings), tmp_path / "out")
    with pytest.raises(ValueError, match="nothing would be known of a user"):
        config([path], "random", ordered=False, user_id=False)


def test_the_draw_of_validation_rows_depends_on_the_seed_alone(tmp_path: Path) -> None:
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    settings = config([write(train, LINES), write(test, LINES)], "files", ordered=False)
    names = []
    for i, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(i)
        out.mkdir()
        prepare(settings, sequences.open_data(settings), out, seed)
        valid = pl.read_parquet(out / "valid/*.parquet").filter(pl.col("click") == 1)
        names.append(np.sort(valid["user"].to_numpy() * 100 + valid["item"].to_numpy()))
    assert np.array_equal(names[0], names[1])
    assert not np.array_equal(names[0], names[2])
