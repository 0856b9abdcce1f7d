"""Some rows without a click are not read: the same ones by everybody, every time."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.loader.sampled_split import SampledSplit
from torchrec_adrec.errors import DataError

ROWS, RATE = 4000, 0.3


@pytest.fixture
def whole(tmp_path: Path) -> Split:
    """Three files; x is the number of a row; one group holds no click at all."""
    x = np.arange(ROWS)
    click = np.where(x % 5 == 0, 1.0, 0.0).astype(np.float32)
    click[x % 97 == 3] = np.nan
    click[50:100] = 0
    rows = pl.DataFrame({"x": x, "click": click})
    for i, first in enumerate(range(0, ROWS, 1500)):
        part = rows[first : first + 1500]
        part.write_parquet(tmp_path / f"part-{i:05d}.parquet", row_group_size=50)
    return Split.open(tmp_path)


def sampled(whole: Split, rate: float = RATE, seed: int = 0) -> SampledSplit:
    return SampledSplit.of(whole, "click", rate, seed)


def read(split: Split, ranks: int = 1, epoch: int = 0, start: int = 0) -> Int64s:
    """The rows of an epoch, all ranks together, step after step."""
    parts = []
    for rank in range(ranks):
        reader = Reader(split, ("x",), 120, rank, ranks, seed=3, shuffle_window=200)
        parts.append(
            [rows.columns["x"].copy() for rows in reader.epoch(epoch, start)],
        )
    return np.concatenate([x for step in zip(*parts, strict=True) for x in step])


def test_all_rows_stay_but_a_share_of_those_without_a_click(whole: Split) -> None:
    every = np.concatenate([c["click"] for c in whole.read(range(80), ["click"])])
    rows = sampled(whole)
    kept = np.concatenate([c["x"] for c in rows.read(range(len(rows.groups)), ["x"])])
    assert len(kept) == rows.num_rows == len(np.unique(kept))
    others = np.flatnonzero(every != 0)
    assert np.isin(others, kept).all()
    share = (len(kept) - len(others)) / (ROWS - len(others))
    assert share == pytest.approx(RATE, abs=0.03)
    # Each row is drawn on its own: no place in a group is kept in all groups or none.
    places = np.bincount(np.setdiff1d(kept, others) % 50, minlength=50)
    assert np.delete(places, range(0, 50, 5)).min() > 5 and places.max() < 45
    other_seed = sampled(whole, seed=1)
    assert other_seed.num_rows != rows.num_rows


def test_any_number_of_ranks_reads_the_same_rows(whole: Split) -> None:
    rows = sampled(whole)
    alone = read(rows)
    assert (read(rows, ranks=3) == alone).all()
    assert len(np.unique(alone)) == len(alone) == rows.num_rows // 120 * 120
    later = read(rows, epoch=1)
    assert len(np.intersect1d(alone, later)) > 0.8 * len(alone)
    assert (read(sampled(whole), start=2) == alone[240:]).all()


def test_a_row_is_found_in_its_file(whole: Split) -> None:
    rows = sampled(whole)
    kept = np.concatenate([c["x"] for c in rows.read(range(len(rows.groups)), ["x"])])
    for row in (0, 17, 333, rows.num_rows - 1):
        assert rows.locate(row) == whole.locate(int(kept[row]))


def test_groups_that_lose_all_rows_are_left_out(whole: Split) -> None:
    rows = sampled(whole, rate=0.001)
    assert len(rows.groups) == 79 and all(count for *_, count in rows.groups)
    assert len(read(rows)) == rows.num_rows // 120 * 120


def test_a_rate_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    pl.DataFrame({"click": [0.0, 0.0]}).write_parquet(path)
    with pytest.raises(DataError, match="leaves none of the 2 training rows"):
        sampled(Split.open(tmp_path), rate=1e-9)
