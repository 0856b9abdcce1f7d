"""The reader returns each row exactly once, on any number of ranks, from any step."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_adrec.data.loader.parquet import Reader, StepRows
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.loader.windows import OwnWindows
from torchrec_adrec.data.prepare.row_buffer import RowBuffer
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.runtime.prefetch import prefetch

COLUMNS = ("x", "small", "half", "h:0", "h:1")


@dataclass(frozen=True)
class Shape:
    """A split and how it is read: `unit` * 12 rows a step, for 1 to 4 ranks."""

    files: list[int]
    group: int
    window: int
    unit: int

    @property
    def size(self) -> int:
        return 12 * self.unit


shapes = st.builds(
    Shape,
    files=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    group=st.integers(1, 40),
    window=st.integers(1, 200),
    unit=st.integers(1, 4),
)
worlds = st.integers(1, 4)
examples = settings(max_examples=60, deadline=None)


def frame(first: int, rows: int) -> pl.DataFrame:
    """Columns of three types whose values are computed from the row's number."""
    x = np.arange(first, first + rows)
    history = {f"h:{i}": np.where(x % 3 > i, x + i, -1) for i in range(2)}
    small = {name: v.astype(np.int32) for name, v in {"small": x, **history}.items()}
    return pl.DataFrame({"x": x, "half": (x / 2).astype(np.float32), **small})


def write(folder: Path, files: list[int], group: int) -> Split:
    first = 0
    for i, rows in enumerate(files):
        path = folder / f"part-{i:05d}.parquet"
        frame(first, rows).write_parquet(path, row_group_size=group)
        first += rows
    return Split.open(folder)


def check(rows: StepRows) -> None:
    """All columns of a row belong to it, whatever their type."""
    expected = frame(0, rows.split.num_rows)[rows.numbers].to_dict()
    for name, values in expected.items():
        assert rows.columns[name].tolist() == values.to_list(), name


def steps(
    split: Split, shape: Shape, world: int, seed: int | None, first: int = 0
) -> list[list[int]]:
    """The rows of each global step; every rank must take as many steps."""
    per_rank = []
    for rank in range(world):
        reader = Reader(split, COLUMNS, shape.size, rank, world, seed, shape.window)
        local = list(reader.epoch(3, first))
        assert len(local) == reader.steps - first
        assert all(len(rows.numbers) == shape.size // world for rows in local)
        for rows in local:
            check(rows)
        per_rank.append([rows.numbers[rows.weights > 0].tolist() for rows in local])
    return [list(chain(*parts)) for parts in zip(*per_rank, strict=True)]


@examples
@given(shape=shapes, world=worlds)
def test_evaluation_sees_each_row_once_in_file_order(
    shape: Shape, world: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    split = write(tmp_path_factory.mktemp("split"), shape.files, shape.group)
    rows = list(chain(*steps(split, shape, world, None)))
    assert rows == list(range(sum(shape.files)))


@examples
@given(shape=shapes, before=worlds, after=worlds, data=st.data())
def test_training_goes_on_exactly_at_any_world_size(
    shape: Shape,
    before: int,
    after: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    split = write(tmp_path_factory.mktemp("split"), shape.files, shape.group)
    if split.num_rows < shape.size:
        with pytest.raises(ConfigError, match="exceeds"):
            Reader(split, COLUMNS, shape.size, 0, before, 7)
        return
    whole = steps(split, shape, before, 7)
    rows = list(chain(*whole))
    full = split.num_rows // shape.size * shape.size
    assert len(rows) == len(set(rows)) == full
    first = data.draw(st.integers(0, len(whole)))
    assert steps(split, shape, after, 7, first) == whole[first:]


def test_epochs_differ_and_are_shuffled(tmp_path: Path) -> None:
    split = write(tmp_path, [500], 50)
    reader = Reader(split, COLUMNS, 500, seed=1)
    orders = [next(reader.epoch(e)).numbers.tolist() for e in (0, 1, 0)]
    assert orders[0] != orders[1] and orders[0] == orders[2]
    assert orders[0] != list(range(500)) and sorted(orders[0]) == list(range(500))


def test_windows_that_are_skipped_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = write(tmp_path, [100], 10)
    decoded: list[int] = []
    decode = OwnWindows.decode

    def counted(windows: OwnWindows, groups: list[int]) -> RowBuffer:
        decoded.extend(groups)
        return decode(windows, groups)

    monkeypatch.setattr(OwnWindows, "decode", counted)
    list(Reader(split, COLUMNS, 10, seed=0, shuffle_window=20).epoch(0, 7))
    assert len(decoded) == 4  # of ten groups in five windows, the last two windows'


def test_rows_outlive_the_memory_of_their_window(tmp_path: Path) -> None:
    split = write(tmp_path, [400], 10)
    for rows in list(Reader(split, COLUMNS, 12, seed=0, shuffle_window=20).epoch()):
        check(rows)


def test_the_next_window_leaves_the_present_one_alone(tmp_path: Path) -> None:
    split = write(tmp_path, [400], 10)
    reader = Reader(split, COLUMNS, 12, seed=0, shuffle_window=20)
    windows = reader._windows(0, 0, reader._memory(0))
    present, _ = next(windows), next(windows)
    check(present.rows(present.first, present.end, split))


def test_epochs_that_run_together_share_no_memory(tmp_path: Path) -> None:
    split = write(tmp_path, [400], 10)
    reader = Reader(split, COLUMNS, 12, seed=0, shuffle_window=20)
    for _ in reader.epoch(0):  # leaves its memory for the next one
        pass
    for pair in zip(reader.epoch(1), reader.epoch(2), strict=True):
        for rows in pair:
            check(rows)


def test_a_row_is_located(tmp_path: Path) -> None:
    split = write(tmp_path, [10, 10], 4)
    assert split.locate(15).endswith("part-00001.parquet, row group 1, row 1")


def test_a_batch_size_that_ranks_cannot_share(tmp_path: Path) -> None:
    split = write(tmp_path, [10], 10)
    with pytest.raises(ConfigError, match="10 must be a multiple of the 4 ranks"):
        Reader(split, COLUMNS, 10, 0, 4)


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `adrec prepare`"):
        Split.open(tmp_path)


def test_files_that_do_not_fit_the_first_are_refused(tmp_path: Path) -> None:
    split = write(tmp_path, [10, 10], 4)
    other = frame(0, 10).with_columns(pl.Series("small", [None, *range(9)], pl.Int32))
    for odd, message in (
        (other, "part-00001.parquet, row group 0: small is float64, expected int32"),
        (other.drop("small"), "part-00001.parquet, row group 0 has no column small"),
    ):
        odd.write_parquet(tmp_path / "part-00001.parquet", row_group_size=4)
        with pytest.raises(DataError, match=message):
            list(Reader(split, COLUMNS, 4).epoch())


def test_a_column_that_no_file_has(tmp_path: Path) -> None:
    split = write(tmp_path, [10], 4)
    with pytest.raises(DataError, match=r"part-00000\.parquet has no columns \['y'\]"):
        Reader(split, (*COLUMNS, "y"), 4)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    split = write(tmp_path, [10, 10], 4)
    (tmp_path / "part-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"part-00001\.parquet cannot be read"):
        list(Reader(split, COLUMNS, 4).epoch())


def test_an_error_of_the_thread_arrives_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise DataError("broken")

    ahead = prefetch(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(DataError, match="broken"):
        next(ahead)
    assert list(ahead) == []


@pytest.mark.parametrize("depth", [1, 4])
def test_never_more_ahead_than_asked_for(depth: int) -> None:
    produced: list[int] = []

    def items() -> Iterator[int]:
        for i in range(8):
            produced.append(i)
            yield i

    for i in prefetch(items(), depth):
        time.sleep(0.05)  # the thread's chance to go too far
        assert len(produced) <= i + 1 + depth
    assert produced == list(range(8))


def test_threads_end_when_the_consumer_stops(tmp_path: Path) -> None:
    split = write(tmp_path, [200], 10)
    before = threading.active_count()
    rows = Reader(split, COLUMNS, 10, seed=0, shuffle_window=20).epoch()
    ahead = prefetch(rows)
    next(ahead)
    assert threading.active_count() > before
    ahead.close()
    assert threading.active_count() == before
