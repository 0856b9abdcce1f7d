"""Each row exactly once, on any number of ranks, from any position."""

from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_adrec.data.parquet import Reader, Split
from torchrec_adrec.data.prefetch import prefetch
from torchrec_adrec.errors import ConfigError, DataError

Shape = st.tuples(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),  # rows of each file
    st.integers(1, 25),  # rows of a row group
    st.integers(1, 4),  # ranks
    st.integers(1, 9),  # rows a rank and step
    st.integers(1, 100),  # shuffle window
)


def write(folder: Path, files: list[int], group: int) -> Split:
    first = 0
    for i, rows in enumerate(files):
        frame = pl.DataFrame({"x": np.arange(first, first + rows)})
        frame.write_parquet(folder / f"part-{i:05d}.parquet", row_group_size=group)
        first += rows
    return Split.open(folder)


def steps(
    split: Split, ranks: int, size: int, seed: int | None, window: int, first: int = 0
) -> list[list[int]]:
    """The rows of each global step; checks that values and numbers agree."""
    per_rank = []
    for rank in range(ranks):
        reader = Reader(split, ("x",), size * ranks, rank, ranks, seed, window)
        found = list(reader.epoch(0, first))
        assert len(found) == reader.steps - first
        assert all((r.columns["x"] == r.numbers).all() for r in found)
        per_rank.append([r.numbers[r.weights > 0].tolist() for r in found])
    return [list(chain(*parts)) for parts in zip(*per_rank, strict=True)]


@settings(max_examples=40, deadline=None)
@given(shape=Shape)
def test_evaluation_sees_each_row_once(
    shape: tuple[list[int], int, int, int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    files, group, ranks, size, _ = shape
    split = write(tmp_path_factory.mktemp("split"), files, group)
    rows = list(chain(*steps(split, ranks, size, None, 1)))
    assert rows == list(range(sum(files)))


@settings(max_examples=40, deadline=None)
@given(shape=Shape, data=st.data())
def test_training_goes_on_exactly_at_any_world_size(
    shape: tuple[list[int], int, int, int, int],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    files, group, ranks, size, window = shape
    split = write(tmp_path_factory.mktemp("split"), files, group)
    if split.num_rows < ranks * size:
        with pytest.raises(ConfigError, match="exceeds"):
            Reader(split, ("x",), ranks * size, 0, ranks, 7)
        return
    whole = steps(split, ranks, size, 7, window)
    rows = list(chain(*whole))
    assert (
        len(rows) == len(set(rows)) == split.num_rows // (ranks * size) * ranks * size
    )
    first = data.draw(st.integers(0, len(whole)))
    # The same global batches on one rank, from the middle of the epoch.
    assert steps(split, 1, size * ranks, 7, window, first) == whole[first:]


def test_epochs_differ_and_are_shuffled(tmp_path: Path) -> None:
    split = write(tmp_path, [500], 50)
    reader = Reader(split, ("x",), 500, seed=1)
    orders = [next(reader.epoch(e)).numbers.tolist() for e in (0, 1, 0)]
    assert orders[0] != orders[1] and orders[0] == orders[2]
    assert orders[0] != list(range(500)) and sorted(orders[0]) == list(range(500))


def test_a_row_is_located(tmp_path: Path) -> None:
    split = write(tmp_path, [10, 10], 4)
    assert split.locate(15).endswith("part-00001.parquet, row group 1, row 1")


def test_a_batch_size_that_ranks_cannot_share(tmp_path: Path) -> None:
    split = write(tmp_path, [10], 10)
    with pytest.raises(ConfigError, match="10 must be a multiple of the 4 ranks"):
        Reader(split, ("x",), 10, 0, 4)


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `adrec prepare`"):
        Split.open(tmp_path)


def test_an_error_of_the_thread_arrives() -> None:
    def items() -> object:
        yield 1
        raise DataError("broken")

    ahead = prefetch(items())  # type: ignore[arg-type]
    assert next(ahead) == 1
    with pytest.raises(DataError, match="broken"):
        next(ahead)
