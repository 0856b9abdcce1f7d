"""The raw files, parsed once: chunks of coded columns that the later passes map.

FOLDER/
  00000-000000.arrow      first chunk of the first file, as `column.Chunk`
  00000.json              the file: rows of each chunk, bad rows

A rank takes whole files and a chunk never spans two, so the folder is the same however
many ranks made it.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import polars as pl

from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.column import Chunk
from torchrec_adrec.data.dataset import DataSet, check_rows
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runtime.prefetch import prefetch
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import Ranks

# Of this process. More would only hold more chunks: ranks share the files.
THREADS = min(4, len(os.sched_getaffinity(0)))
T = TypeVar("T")


def spill(data: DataSet, out: Path, ranks: Ranks) -> None:
    """Parse this rank's files into `out`. Ends when all ranks have.

    Raises:
        ConfigError: a raw file is missing.
    """
    missing = [str(path) for path in data.files if not path.is_file()]
    if missing or not data.files:
        named = ", ".join(missing) or "none given"
        raise ConfigError(f"data.raw: no such file: {named}")
    if ranks.is_first:
        out.mkdir()
    ranks.barrier()
    with Progress("prepare: reading", unit="rows") as progress:
        for number in range(ranks.rank, len(data.files), ranks.world_size):
            _spill_file(data, number, out, progress)
    ranks.barrier()


def _spill_file(data: DataSet, number: int, out: Path, progress: Progress) -> None:
    bad = BadRows()
    rows: list[int] = []
    with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(1) as writer:
        written = None
        for frame in prefetch(data.read(data.files[number], bad), depth=1):
            check_rows(frame, data)
            if not len(frame):
                continue
            chunk = Chunk.of(frame, data, pool)
            if written is not None:
                written.result()  # one chunk waits at most
            path = out / f"{number:05d}-{len(rows):06d}.arrow"
            written = writer.submit(chunk.save, path)
            rows.append(len(frame))
            progress.advance(len(frame))
        if written is not None:
            written.result()
    bad.rows_read = sum(rows)
    text = json.dumps({"rows": rows, "bad": asdict(bad)})
    (out / f"{number:05d}.json").write_text(text)


@dataclass(frozen=True)
class ChunkRef:
    """Where a chunk stands.

    Attributes:
        file: number of its raw file.
        number: of the chunk in its file.
        row: number of its first row among the good rows of all files.
        row_in_file: the same within its file.
    """

    file: int
    number: int
    row: int
    row_in_file: int
    path: Path

    def load(self) -> Chunk:
        """Map it."""
        return Chunk.load(self.path)


@dataclass(frozen=True)
class ChunkStore:
    """All chunks of all files, and the bad rows."""

    chunks: tuple[ChunkRef, ...]
    num_rows: int
    bad: BadRows

    @classmethod
    def open(cls, folder: Path) -> "ChunkStore":
        """Read what all ranks wrote."""
        chunks: list[ChunkRef] = []
        bad, first = BadRows(), 0
        for file, path in enumerate(sorted(folder.glob("*.json"))):
            about = json.loads(path.read_text())
            firsts = accumulate(about["rows"], initial=0)
            for number, row in zip(range(len(about["rows"])), firsts, strict=False):
                chunk = folder / f"{file:05d}-{number:06d}.arrow"
                chunks.append(ChunkRef(file, number, first + row, row, chunk))
            first += sum(about["rows"])
            bad.extend(BadRows(**about["bad"]))
        return cls(tuple(chunks), first, bad)

    def of(self, ranks: Ranks) -> Iterator[ChunkRef]:
        """The chunks that a rank works on: those of its files."""
        return (p for p in self.chunks if p.file % ranks.world_size == ranks.rank)


def each(chunks: Iterable[ChunkRef], work: Callable[[ChunkRef], T]) -> Iterator[T]:
    """Do some work on every chunk, a few at a time; results in the chunks' order."""
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[Future[T]] = deque()
        for ref in chunks:
            ahead.append(pool.submit(work, ref))
            if len(ahead) > THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def time_of(store: ChunkStore) -> pl.Series:
    """The time of every row of a data set with a time column, (rows,) int64."""
    parts = [pl.Series(ref.load().time) for ref in store.chunks]
    return pl.concat(parts)
