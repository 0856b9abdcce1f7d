"""Ranks as threads of the test: `prepare` shares nothing with them but its folder."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import table
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.runtime.ranks import Ranks


@dataclass(frozen=True)
class ThreadRank:
    """One of several threads that wait for each other."""

    rank: int
    world_size: int
    wait: Callable[[], int]

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        self.wait()


def prepare_on(ranks: int, config: DataConfig, out: Path, seed: int = 0) -> Path:
    """Prepare your own table on some ranks; one that fails fails the test."""
    out.mkdir()
    meeting = threading.Barrier(ranks, timeout=60)

    def one(rank: int) -> None:
        thread: Ranks = ThreadRank(rank, ranks, meeting.wait)
        try:
            prepare(config, table.open_data(config), out, seed, thread)
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        futures = [pool.submit(one, rank) for rank in range(ranks)]
    errors = [e for f in futures if (e := f.exception()) is not None]
    causes = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    if errors:
        raise (causes or errors)[0]
    return out


def assert_same_files(one: Path, other: Path) -> None:
    """Every file that says what the data are has the same bytes in both folders."""
    names = [p.relative_to(one) for p in one.rglob("*") if p.is_file()]
    compared = [n for n in names if n.suffix in (".json", ".parquet", ".md")]
    assert len(compared) > 5
    for name in compared:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    report = json.loads((one / "report.json").read_text())
    assert report["splits"]["train"]["rows"]
