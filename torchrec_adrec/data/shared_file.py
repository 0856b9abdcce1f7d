"""One Parquet file that all ranks write together; it appears when it is whole."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_adrec.runtime.files import put
from torchrec_adrec.runtime.ranks import Ranks


@contextmanager
def shared_parquet(out: Path, ranks: Ranks) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what appends a table to this rank's rows. Collective.

    The file holds the rows of the first rank, then those of the second, and so on. What
    an earlier attempt left is removed; a file of that name stays until the end.

    Args:
        out: the file; a folder `OUT.partial` stands beside it meanwhile.
        ranks: the processes that write it.
    """
    folder = out.with_name(f"{out.name}.partial")
    if ranks.is_first:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    ranks.barrier()
    writers: list[pq.ParquetWriter] = []

    def write(table: pa.Table) -> None:
        if not writers:
            path = folder / f"{ranks.rank:05d}.parquet"
            writers.append(pq.ParquetWriter(path, table.schema))
        writers[0].write_table(table)

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()
    ranks.barrier()
    if ranks.is_first:
        _join(folder, out)
    ranks.barrier()


def _join(folder: Path, out: Path) -> None:
    parts = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    whole = folder / "whole"
    with pq.ParquetWriter(whole, parts[0].schema_arrow) as writer:
        for part in parts:
            for number in range(part.num_row_groups):
                writer.write_table(part.read_row_group(number))
    put(whole, out)
    shutil.rmtree(folder)
