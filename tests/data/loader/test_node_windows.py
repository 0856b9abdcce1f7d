"""Ranks that decode together read what each would read alone, whoever leaves when."""

import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_parquet import COLUMNS, check, write

from torchrec_adrec.data.loader.node_windows import NodeWindows
from torchrec_adrec.data.loader.parquet import Reader, StepRows
from torchrec_adrec.data.loader.reader_process import nameless_memory
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.data.prepare.row_buffer import RowBuffer
from torchrec_adrec.errors import DataError, ReaderError

BATCH, WINDOW, EPOCHS = 12, 40, 3
Order = list[list[int]]
OPEN_WINDOWS: list[NodeWindows] = []


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Files whose row groups are of different sizes, 290 rows in 25 groups."""
    return write(tmp_path, [100, 7, 120, 63], 13)


def readers(split: Split, ranks: int, pids: list[int] | None = None) -> list[Reader]:
    """Those of the ranks of one machine; here all are threads of this process."""
    each = [
        Reader(split, COLUMNS, BATCH, r, ranks, 7, WINDOW, []) for r in range(ranks)
    ]
    rows = each[0].most_window_rows
    file = nameless_memory(NodeWindows.nbytes(split, COLUMNS, rows, ranks))
    pids = pids or [1] * ranks  # the first process of the machine never ends
    for rank, reader in enumerate(each):
        windows = NodeWindows(split, COLUMNS, rows, file, rank, pids)
        OPEN_WINDOWS.append(windows)
        reader.decode_to(windows)
    return each


def all_rows(reader: Reader, first: int = 0) -> Iterator[StepRows]:
    """Of all epochs, after `first` steps of the first one."""
    for epoch in range(EPOCHS):
        yield from reader.epoch(epoch, first if epoch == 0 else 0)


def numbers(steps: Iterator[StepRows]) -> Order:
    """The rows of every step, whose columns are checked."""
    order = []
    for rows in steps:
        check(rows)
        order.append(rows.numbers.tolist())
    return order


def alone(split: Split, rank: int, ranks: int, first: int = 0) -> Order:
    reader = Reader(split, COLUMNS, BATCH, rank, ranks, 7, WINDOW)
    return numbers(all_rows(reader, first))


def on_all(ranks: int, work: Callable[[int], Any]) -> list[Any]:
    """Do something on every rank at once."""
    with ThreadPoolExecutor(ranks) as pool:
        jobs = [pool.submit(work, rank) for rank in range(ranks)]
        try:
            return [job.result(20) for job in jobs]
        finally:
            for windows in OPEN_WINDOWS:  # a rank that waits would keep the test
                windows.leave()
            OPEN_WINDOWS.clear()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that were decoded, by anyone."""
    groups: list[int] = []
    read = Split.read

    def counted(self: Split, some: list[int], columns: list[str]) -> Any:
        groups.extend(some)
        return read(self, some, columns)

    monkeypatch.setattr(Split, "read", counted)
    return groups


@pytest.mark.parametrize("first", [0, 13])
@pytest.mark.parametrize("ranks", [2, 4])
def test_rows_are_those_of_ranks_that_read_alone(
    split: Split, ranks: int, first: int, decoded: list[int]
) -> None:
    expected = [alone(split, rank, ranks, first) for rank in range(ranks)]
    decoded.clear()
    each = readers(split, ranks)
    step = Barrier(ranks)

    def train(rank: int) -> Order:
        """As trainers do: no rank is a step ahead of another."""
        order = []
        for rows in all_rows(each[rank], first):
            check(rows)
            order.append(rows.numbers.tolist())
            step.wait(20)
        return order

    assert on_all(ranks, train) == expected
    # Each group once for all ranks.
    assert max(Counter(decoded).values()) == EPOCHS
    assert first or len(decoded) == EPOCHS * len(split.groups)


def test_the_ranks_decode_equally_many_groups(split: Split) -> None:
    """Windows of three groups for four ranks."""
    windows: Any = [reader._memory(0) for reader in readers(split, 4)]
    shares = [sum(len(each._deal(3)) for _ in range(8)) for each in windows]
    assert shares == [6] * 4
    assert sorted(chain(*(each._deal(5) for each in windows))) == [0, 1, 2, 3, 4]


def test_a_window_stays_until_the_slowest_rank_has_released_it(split: Split) -> None:
    each = readers(split, 2)
    slow = all_rows(each[1])
    with ThreadPoolExecutor(1) as pool:
        fast = pool.submit(numbers, all_rows(each[0]))
        order = [next(slow)]
        with pytest.raises(TimeoutError):
            fast.result(0.3)  # it would be through with all epochs long before
        order += list(slow)
        assert fast.result(60) == alone(split, 0, 2)
    assert [rows.numbers.tolist() for rows in order] == alone(split, 1, 2)
    for rows in order:
        check(rows)


@pytest.mark.parametrize("steps", [1, 5, 25, 40])
def test_a_rank_that_stops_keeps_nobody(split: Split, steps: int) -> None:
    each = readers(split, 3)

    def read(rank: int) -> Order:
        rows = all_rows(each[rank])
        if rank == 1:
            order = numbers(islice(rows, steps))
            rows.close()  # type: ignore[attr-defined]
            return order
        return numbers(rows)

    orders = on_all(3, read)
    assert [orders[0], orders[2]] == [alone(split, 0, 3), alone(split, 2, 3)]
    assert orders[1] == alone(split, 1, 3)[:steps]


def test_a_rank_that_died_keeps_nobody(split: Split) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    each = readers(split, 2, [1, process.pid])
    # As one of all ranks, so that a reader that waits for ever fails and does not hang.
    (order,) = on_all(1, lambda rank: numbers(all_rows(each[rank])))
    assert order == alone(split, 0, 2)


def test_whoever_is_closed_while_it_waits_ends(split: Split) -> None:
    """Of two ranks the other one never reads."""
    windows = readers(split, 2)[0]._memory(0)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(windows.decode, [0, 1, 2])
        with pytest.raises(TimeoutError):
            waits.result(0.1)
        windows.leave()
        with pytest.raises(ReaderError, match="has been ended"):
            waits.result(60)


def test_every_rank_names_a_damaged_file(split: Split) -> None:
    damaged = split.groups[-1][0]
    pl.read_parquet(damaged).drop("x").write_parquet(damaged, row_group_size=13)
    each = readers(split, 2)

    def error(rank: int) -> str:
        with pytest.raises(DataError) as raised:
            numbers(all_rows(each[rank]))
        return str(raised.value)

    errors = on_all(2, error)
    assert errors[0].startswith(f"{damaged}, row group ")
    assert all(text.endswith("has no column x; prepare again") for text in errors)


def test_whoever_cannot_read_its_share_keeps_nobody(split: Split) -> None:
    """At once, and not when its trainer arrives at the window and ends reading."""
    split.groups[-1][0].write_bytes(b"")
    window = [0, len(split.groups) - 1]  # the second group is the second rank's
    windows: Any = [reader._memory(0) for reader in readers(split, 2)]

    def share(rank: int) -> bool:
        if rank == 0:
            return bool(windows[0]._decode_together(window))
        with pytest.raises(DataError, match="cannot be read"):
            windows[1].decode(window)
        return False

    assert on_all(2, share) == [False, False]


def test_another_process_sees_the_same_memory(split: Split) -> None:
    windows = readers(split, 1)[0]._memory(0)
    sent = pickle.loads(pickle.dumps(windows))
    first, second = windows.decode([3, 4]), sent._buffer(0)
    assert isinstance(second, RowBuffer)
    rows = np.arange(26)
    assert first.take(rows)["x"].tolist() == second.take(rows)["x"].tolist()


SCRIPT = """
from itertools import islice
from pathlib import Path

import torch
from test_batch_source import RepairCounts, feed_of, heap, parts

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.schema import Schema
from torchrec_adrec.training.batch_source import BatchSource

data = Path(DATA)
schema = Schema.load(data / "schema.json")
read, decoded = Split.read, []
def counted(self, groups, columns):
    decoded.extend(groups)
    return read(self, groups, columns)
with process_group("cpu") as process:
    alike = []
    for way, window in (("thread", 100), ("thread", 31), ("process", 100)):
        settings = ("batch_size=32", "epochs=2", f"shuffle_window={window}")
        settings = [f"train.{x}" for x in (*settings, f"reader={way}")]
        train = load_config(None, settings).train
        source = BatchSource(data, schema, train, 1, process, data)
        assert (source._windows is not None) == (window == 100)
        private = BatchSource(data, schema, train, 1, process, data)
        private.reader._spare.clear()
        decoded.clear()
        Split.read = counted
        batches = [parts(batch) for batch in source.batches(3)]
        Split.read = read
        expected = [parts(b) for _, b in private.feed.read(3, heap, RepairCounts())]
        assert len(batches) == source.steps - 3 and batches == expected
        alike.append(len(decoded))
    totals = [None] * 2
    torch.distributed.all_gather_object(totals, alike)
    if process.is_first:
        print("GROUPS", *(sum(count) for count in zip(*totals)), flush=True)
"""


def test_the_ranks_of_a_machine_find_one_another(
    prepared: Path,
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
) -> None:
    """They decode each group once, by thread or process, where a step fits windows."""
    (path,) = (prepared / "train").glob("*.parquet")
    pl.read_parquet(path).write_parquet(path, row_group_size=50)
    groups = len(Split.open(prepared / "train").groups)
    folder = str(Path(__file__).parents[2] / "training")
    script = SCRIPT.replace("DATA", repr(str(prepared)))
    text = f"import sys\nsys.path.append({folder!r})\n{script}"
    done = ranks_script(2, text)
    assert done.returncode == 0, done.stderr
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("GROUPS"))
    together, each_for_itself = map(int, line.split()[1:3])
    assert together <= 2 * groups < each_for_itself
