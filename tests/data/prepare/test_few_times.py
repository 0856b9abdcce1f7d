"""Splits by time of rows that share few times: the proposed shares can be cut."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from torchrec_adrec.config.data import SplitConfig
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.column import Chunk
from torchrec_adrec.data.prepare import splits
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore
from torchrec_adrec.data.prepare.splits import ByTime
from torchrec_adrec.errors import DataError

Cut = Callable[[SplitConfig, list[int]], list[int]]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Cut:
    """Return a function that splits rows by time and counts the rows of each split."""

    def rows(config: SplitConfig, counts: list[int]) -> list[int]:
        times = np.repeat(np.arange(len(counts)) * 10, counts)
        monkeypatch.setattr(splits, "time_of", lambda store: pl.Series(times))
        splitter = ByTime.fit(config, ChunkStore((), len(times), BadRows()))
        assigned = splitter.assign(Chunk({}, {}, times), ChunkRef(0, 0, 0, 0, Path()))
        sizes: list[int] = np.bincount(assigned, minlength=3).tolist()
        return sizes

    return rows


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1500, 1500], [1500, 0, 1500]),
        ([70, 30], [70, 0, 30]),
        ([1000, 1000, 1000], [1000, 1000, 1000]),
        ([10, 980, 10], [10, 980, 10]),
        ([900, 50, 25, 25], [900, 50, 50]),
        ([300, 300, 50, 350], [600, 50, 350]),
        ([7, 300, 7, 301, 11], [314, 301, 11]),
    ],
)
def test_the_proposed_shares_can_be_cut(
    cut: Cut, counts: list[int], expected: list[int]
) -> None:
    with pytest.raises(DataError) as error:
        cut(SplitConfig(), counts)
    message = str(error.value)
    most = f"has {max(counts):,} of {sum(counts):,} rows"
    assert f"(different times: {len(counts)}; the most" in message
    assert most in message
    (proposed,) = re.findall(r"'data\.split=(.*?)'", message)
    assert cut(SplitConfig(**yaml.safe_load(proposed)), counts) == expected


@pytest.mark.parametrize(
    ("counts", "fix"),
    [
        ([50], "finer time, or set data.split.by=random"),
        ([100_000, 5], "finer time, data.split.valid=0, or data.split.by=random"),
    ],
)
def test_where_no_shares_help_another_split_is_named(
    cut: Cut, counts: list[int], fix: str
) -> None:
    with pytest.raises(DataError, match=fix):
        cut(SplitConfig(), counts)
