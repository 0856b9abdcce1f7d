"""A process of its own reads what a thread reads, and neither outlives the other."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.loader.batch_memory import heap
from torchrec_adrec.data.loader.bounds import RepairCounts
from torchrec_adrec.data.loader.collate import batch_columns, collate
from torchrec_adrec.data.loader.extra_ads import ExtraAds
from torchrec_adrec.data.loader.feed import BatchOrigin, Feed
from torchrec_adrec.data.loader.negatives import UniformNegatives
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.reader_process import read_in_process
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.errors import DataError, ReaderError
from torchrec_adrec.schema import Schema
from torchrec_adrec.training.batch_source import BatchSource

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
Way = Callable[..., Iterator[tuple[BatchOrigin, Batch]]]
WAYS: dict[str, Way] = {"thread": Feed.read, "process": read_in_process}


@pytest.fixture
def histories(prepared: Path) -> Path:
    """The training rows with a history beside, which most rows have less of."""
    schema = Schema.load(prepared / "schema.json")
    history = {"name": "seen", "side": "user", "source": "C1", "num_embeddings": 50}
    values = schema.model_dump() | {"sequences": [history | {"max_length": 3}]}
    Schema.model_validate(values).save(prepared / "schema.json")
    for path in (prepared / "train").glob("*.parquet"):
        rows = pl.read_parquet(path)
        ids = np.arange(len(rows), dtype=np.int32) % 50
        histories = {f"seen:{i}": np.where(ids % 4 > i, ids, -1) for i in range(3)}
        rows.with_columns(**histories).write_parquet(path, row_group_size=50)
    return prepared


def feed_of(data: Path, rank: int = 0, ranks: int = 1, bounds: Any = "raise") -> Feed:
    """Two epochs of ten steps."""
    schema = Schema.load(data / "schema.json")
    split, columns = Split.open(data / "train"), batch_columns(schema)
    reader = Reader(split, columns, 32, rank, ranks, seed=1, shuffle_window=100)
    negatives = ExtraAds(UniformNegatives(data, schema, 8, 32, 1, rank, ranks))
    return Feed(reader, schema, 2, bounds, negatives, numbered=True)


def parts(batch: Batch) -> list[list[float]]:
    """Everything that stands in a batch."""
    tensors = [batch.labels, batch.weights, batch.ad_ids, batch.log_q]
    tensors += [batch.anchors, batch.anchor_weights]
    for side in (batch.user, batch.ad):
        tensors += [side.dense, side.sparse.values(), side.sparse.lengths()]
    return [part.flatten().tolist() for part in tensors]


@pytest.mark.parametrize(("first", "rank", "ranks"), [(0, 0, 1), (13, 1, 2)])
def test_a_process_reads_what_a_thread_reads(
    histories: Path, first: int, rank: int, ranks: int
) -> None:
    feed = feed_of(histories, rank, ranks)
    kept = []
    for by_thread, by_process in zip(
        feed.read(first, heap, RepairCounts()),
        read_in_process(feed, first, heap, RepairCounts()),
        strict=True,
    ):
        kept.append((by_thread, by_process))
    assert [mine.step for (mine, _), _ in kept] == list(range(first + 1, 21))
    for (mine, batch), (other, same) in kept:  # all outlive the ring's few slots
        assert parts(same) == parts(batch)
        assert (other.step, other.count, other.first) == (
            *(mine.step, mine.count, mine.first),
        )
        assert other.numbers is not None and mine.numbers is not None
        assert other.numbers.tolist() == mine.numbers.tolist()
        assert other.numbers[0] == other.first
        assert same.buffer.numel() <= feed.most_bytes


def spoil(data: Path) -> str:
    """An id out of range in the last row; where it stands."""
    (path,) = (data / "train").glob("*.parquet")
    rows = pl.read_parquet(path)
    ids = rows["C1"].to_numpy().copy()
    ids[-1] = 999
    rows.with_columns(C1=ids).write_parquet(path, row_group_size=50)
    return f"{path}, row group {(len(rows) - 1) // 50}, row {(len(rows) - 1) % 50}: C1"


@pytest.mark.parametrize("way", WAYS)
def test_a_fault_is_named_or_mended_whoever_reads(
    prepared: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = spoil(prepared)
    with pytest.raises(DataError) as error:
        list(WAYS[way](feed_of(prepared), 0, heap, RepairCounts()))
    assert str(error.value).startswith(f"{place} is 999, expected 0 to")
    repaired = RepairCounts()
    read = list(WAYS[way](feed_of(prepared, bounds="clamp"), 0, heap, repaired))
    assert len(read) == 20 and repaired.counts == {"C1": 2}
    assert [r.getMessage() for r in caplog.records] == [
        f"{place} is 999, {str(error.value).split('999, ')[1]}; repaired, and so"
        " is every later one"
    ]


def child_of(pid: int) -> int:
    """The process that reads for another one."""
    readers = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            if b"reader_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                readers.append(int(child))
    (child_pid,) = readers
    return child_pid


def shared_memories() -> set[str]:
    """Inodes of the shared memories that this process sees, whoever opened them."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[4] for line in maps if "memfd:adrec-batches" in line}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@linux
def test_a_child_that_dies_is_told_of_and_one_that_is_left_ends(prepared: Path) -> None:
    for killed in (True, False):
        others = shared_memories()  # of tests before this one, not collected yet
        read = read_in_process(feed_of(prepared), 0, heap, RepairCounts())
        next(read)
        child = Path(f"/proc/{child_of(os.getpid())}")
        assert shared_memories() - others
        if killed:
            os.kill(int(child.name), signal.SIGKILL)
            with pytest.raises(ReaderError, match=r"exit code -9, .*reader=thread"):
                list(read)
        read.close()  # type: ignore[attr-defined]
        assert not child.exists()
        del read
        gc.collect()  # the error's traceback still held the frames that see the memory
        assert not shared_memories() - others


TRAINER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_batch_source import RepairCounts, feed_of, heap, read_in_process
read = read_in_process(feed_of(Path({data!r})), 0, heap, RepairCounts())
next(read)
print("reads", flush=True)
time.sleep(600)
"""


@linux
def test_a_child_ends_with_a_trainer_that_is_killed(
    prepared: Path, tmp_path: Path
) -> None:
    script = tmp_path / "trainer.py"
    tests = str(Path(__file__).parent)
    script.write_text(TRAINER.format(tests=tests, data=str(prepared)))
    trainer = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
    assert trainer.stdout is not None and trainer.stdout.readline() == b"reads\n"
    child = Path(f"/proc/{child_of(trainer.pid)}")
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    wait_until(lambda: not child.exists() or "\tZ" in (child / "status").read_text())


def test_the_setting_chooses_and_a_source_says_where(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = Schema.load(prepared / "schema.json")
    started: list[tuple[Any, ...]] = []
    popen = subprocess.Popen

    def counted(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(args)
        return popen(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", counted)
    results: list[Any] = []
    for way in ("auto", "thread", "process"):
        overrides = ["train.batch_size=32", f"train.reader={way}", "train.ledger=true"]
        config = load_config(None, overrides)
        (prepared / way).mkdir()
        with process_group("cpu") as process:
            train, folder = config.train, prepared / way
            source = BatchSource(prepared, schema, train, 0, process, folder)
            first, second = islice(source.batches(4), 2)
            results.append((source.where(5), source.where(6)))
            assert source.ledger is not None
            source.ledger.step = 4
            source.ledger.keep(6)
            assert source.ahead(6) is second and source.ahead(99) is None
            assert source.begin(6) is second and source.ahead(5) is None
        (path,) = (prepared / way / "ledger").iterdir()
        results[-1] += (np.load(path).tolist(), parts(first), parts(second))
    assert len(started) == 1
    assert results[0] == results[1] == results[2]
    assert "32 rows, the first is " in results[0][0]


def test_a_slot_fits_the_fullest_batch(histories: Path) -> None:
    feed = feed_of(histories)
    rows = next(feed.reader.epoch())
    no_gaps = {f"seen:{i}": np.zeros(32, np.int32) for i in range(3)}
    clicked = {"click": np.ones(32, np.float32)}
    full = replace(rows, columns={**rows.columns, **no_gaps, **clicked})
    batch = collate(full, feed.schema, extra=feed.negatives.of_step(1, full))
    assert batch.buffer.numel() == feed.most_bytes
