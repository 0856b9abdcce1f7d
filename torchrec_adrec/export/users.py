"""The vectors of users of a file, from the towers of a run, by all ranks."""

from pathlib import Path

import polars as pl
import pyarrow as pa

from torchrec_adrec.config.run import Config
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.user_file import UserFile
from torchrec_adrec.data.shared_file import shared_parquet
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.encode import check_vectors, encode_rows
from torchrec_adrec.export.parts import rounded
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import share_of
from torchrec_adrec.schema import Side
from torchrec_adrec.tasks.sharded import restore

VECTOR = "vector"


def export_users(
    run: Path,
    path: Path,
    key: str | None,
    out: Path,
    config: Config,
    process: Process,
) -> None:
    """Write the row, the key and the vector of every user. Collective.

    Args:
        run: the run's folder, with trained towers.
        path: Parquet file of users.
        key: a column that names them, or None.
        out: the file to write; it appears when it is whole.
        config: of the run; `export.dtype` is that of the vectors.
        process: this rank.

    Raises:
        ConfigError: the file cannot be read, or its key has a name that is taken.
        DataError: a row is bad; names file and row.
        CheckpointError: the model gives vectors that cannot be compared.
    """
    encoder = Encoder.load(run / "data")
    users = UserFile.open(path, encoder, key)
    users.check_key([VECTOR])
    rows = share_of(users.count, process)
    users.check(rows)
    model, _ = restore("retrieval", run, encoder.schema, config, process)
    model.eval()
    towers: TwoTower = model.module.model
    size = -(-config.train.eval_batch_size // process.world_size)
    with (
        shared_parquet(out, process) as write,
        Progress("encoding users", rows.stop - rows.start, "rows") as progress,
    ):
        # All ranks take the steps of the largest share: lookups wait for every rank.
        for turn in range(-(-_largest_share(users, process) // size)):
            first = rows.start + turn * size
            stop = min(first + size, rows.stop)
            is_empty = first >= stop
            columns = users.encode(*((0, 1) if is_empty else (first, stop)))
            vectors = encode_rows(
                towers.encode_users,
                pl.DataFrame(columns),
                encoder.schema,
                Side.USER,
                process,
            )
            if is_empty:
                continue
            check_vectors(vectors, Side.USER, config.retrieval.similarity)
            names = users.names(first, stop).to_arrow(
                compat_level=pl.CompatLevel.oldest()
            )
            numbers = pa.array(rounded(vectors, config.export.dtype).ravel())
            column = pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])
            write(names.append_column(VECTOR, column))
            progress.advance(stop - first)


def _largest_share(users: UserFile, process: Process) -> int:
    return -(-users.count // process.world_size)
