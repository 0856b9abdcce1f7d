"""The audit of a ledger finds every row once, or names the rows that it does not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from torchrec_adrec.data.loader.ledger import Ledger, Segment, audit
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import AD_ID

BATCH = 24  # 320 rows: 13 steps an epoch, 8 rows dropped
EPOCH = 13


def reader(data: Path, rank: int = 0, ranks: int = 1) -> Reader:
    split = Split.open(data / "train")
    return Reader(split, (AD_ID,), BATCH, rank, ranks, seed=3, shuffle_window=100)


def write_steps(
    data: Path,
    folder: Path,
    steps: tuple[int, int],
    ranks: int,
    before: Sequence[Segment] = (),
    only: int | None = None,
) -> list[Segment]:
    """Write some steps of some ranks; `only`: the other ranks died before."""
    first, last = steps
    for rank in range(ranks) if only is None else [only]:
        ledger = Ledger(folder, rank, ranks)
        ledger.go_on(first, before)
        local = reader(data, rank, ranks)
        for step in range(first + 1, last + 4):  # read ahead of what is trained
            epoch, skip = divmod(step - 1, EPOCH)
            ledger.take(step, next(iter(local.epoch(epoch, skip))).numbers)
        segments = ledger.keep(last)
    return segments


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def test_a_run_over_two_ranks_one_and_four(prepared: Path, folder: Path) -> None:
    """Steps that dead ranks took as well count once."""
    done = write_steps(prepared, folder, (0, 5), 2)
    write_steps(prepared, folder, (5, 9), 2, done, only=1)
    done = write_steps(prepared, folder, (5, 16), 1, done)
    write_steps(prepared, folder, (16, 20), 1, done)
    done = write_steps(prepared, folder, (16, 2 * EPOCH), 4, done)
    assert done == [(0, 5, 2), (5, 16, 1), (16, 26, 4)]
    epochs = audit(folder, done, reader(prepared))
    assert [epoch.rows for epoch in epochs] == [EPOCH * BATCH] * 2
    assert all(epoch.is_whole for epoch in epochs)


def test_rows_that_are_lost_doubled_or_foreign_are_named(
    prepared: Path, folder: Path
) -> None:
    done = write_steps(prepared, folder, (0, EPOCH), 2)
    trained = np.concatenate([rows.numbers for rows in reader(prepared).epoch(0)])
    dropped = np.setdiff1d(np.arange(320), trained)
    path = folder / "steps-00000000-00000013-rank-1-of-2.npy"
    rows = np.load(path)
    lost = rows[2, :2].tolist()
    rows[2, :2] = rows[4, 0], dropped[0]
    np.save(path, rows)
    (epoch,) = audit(folder, done, reader(prepared))
    assert not epoch.is_whole
    assert epoch.lost.tolist() == sorted(lost)
    assert epoch.doubled.tolist() == [rows[4, 0]]
    assert epoch.foreign.tolist() == [dropped[0]]


def test_what_cannot_be_audited_is_refused(prepared: Path, folder: Path) -> None:
    done = write_steps(prepared, folder, (0, 5), 2)
    (early,) = audit(folder, done, reader(prepared))  # stopped early: its five steps
    assert early.is_whole and early.rows == 5 * reader(prepared).batch_size
    late = write_steps(prepared, folder, (7, EPOCH), 2)
    with pytest.raises(DataError, match="no entry for the steps 6 to 7"):
        audit(folder, [*done, *late], reader(prepared))
    path = folder / "steps-00000000-00000005-rank-1-of-2.npy"
    for damage in (path.read_bytes()[:-9], None):
        path.unlink()
        if damage:
            path.write_bytes(damage)
        with pytest.raises(DataError, match=f"{path.name} cannot be read"):
            audit(folder, [(0, 5, 2)], reader(prepared))
        path.touch()
    np.save(path, np.zeros((4, 12), dtype=np.int64))
    with pytest.raises(DataError, match="holds 4 steps, expected 5"):
        audit(folder, [(0, 5, 2)], reader(prepared))
