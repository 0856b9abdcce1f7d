"""The first pass: raw files are parsed once and spilled to disk in chunks.

FOLDER/
  00000-000000.arrow      first chunk of the first file, as `column.Chunk`
  00000.json              the first file: rows of each chunk, bad rows

Why chunks go to disk: the rows are needed four times and more (twins and leaks, splits,
counts, encoding), they may not fit into memory, and parsing text is the slow part. The
chunks are coded columns in Arrow's own layout, so a later pass maps them into memory
without parsing or copying, and the system drops their pages when memory is short.

A rank takes whole files and no chunk spans two files, so the folder is the same however
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

# Of this process. Every thread holds a chunk in memory, and where there are more cores
# than this, there can be more ranks.
THREADS = min(4, len(os.sched_getaffinity(0)))
T = TypeVar("T")


def spill(data: DataSet, out: Path, ranks: Ranks) -> None:
    """Parse this rank's files into `out`, and wait until all ranks have done so.

    Args:
        data: the files and how to read them.
        out: the folder to make, the same for all ranks.
        ranks: this rank and the others.

    Raises:
        ConfigError: a raw file is missing.
    """
    missing = [str(path) for path in data.files if not path.is_file()]
    if missing or not data.files:
        named = ", ".join(missing) or "none given"
        raise ConfigError(f"data.raw: no such file: {named}")
    if ranks.is_first:
        out.mkdir()
    ranks.barrier()  # nobody writes before the folder is there
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
                # At most one chunk waits to be written: if the disk is slower than the
                # parser, the parser waits and memory does not fill up.
                written.result()
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
    """The place of a chunk, on disk and among all rows.

    Attributes:
        file: number of its raw file, from 0.
        number: number of the chunk within its file, from 0.
        row: number of its first row among the good rows of all files.
        row_in_file: number of its first row among the good rows of its file.
        path: the Arrow file.
    """

    file: int
    number: int
    row: int
    row_in_file: int
    path: Path

    def load(self) -> Chunk:
        """Map the chunk into memory."""
        return Chunk.load(self.path)


@dataclass(frozen=True)
class ChunkStore:
    """All chunks of all files, and the bad rows.

    Attributes:
        chunks: in the order of the files and of the rows in them.
        num_rows: the good rows of all files.
        bad: the rows that were left out.
    """

    chunks: tuple[ChunkRef, ...]
    num_rows: int
    bad: BadRows

    @classmethod
    def open(cls, folder: Path) -> "ChunkStore":
        """Open the folder that the ranks wrote into."""
        chunks: list[ChunkRef] = []
        bad, first = BadRows(), 0
        for file, path in enumerate(sorted(folder.glob("*.json"))):
            record = json.loads(path.read_text())
            *rows_in_file, total = accumulate(record["rows"], initial=0)
            for number, row in enumerate(rows_in_file):
                chunk = folder / f"{file:05d}-{number:06d}.arrow"
                chunks.append(ChunkRef(file, number, first + row, row, chunk))
            first += total
            bad.extend(BadRows(**record["bad"]))
        return cls(tuple(chunks), first, bad)

    def of(self, ranks: Ranks) -> Iterator[ChunkRef]:
        """Return the chunks that a rank works on, which are those of its files."""
        return (ref for ref in self.chunks if ref.file % ranks.world_size == ranks.rank)


def map_chunks(
    chunks: Iterable[ChunkRef], work: Callable[[ChunkRef], T]
) -> Iterator[T]:
    """Yield the result of some work on every chunk, in the order of the chunks.

    Unlike `ThreadPoolExecutor.map`, it starts only a few chunks ahead of the caller, so
    the results of a large data set do not pile up in memory.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[Future[T]] = deque()
        for ref in chunks:
            ahead.append(pool.submit(work, ref))
            if len(ahead) > THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def time_of(store: ChunkStore) -> pl.Series:
    """Return the time of every row, (rows,) int64, of data that has a time column."""
    parts = [pl.Series(ref.load().time) for ref in store.chunks]
    return pl.concat(parts)
