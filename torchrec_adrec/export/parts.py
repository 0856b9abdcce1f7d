"""Parts of an export: files of consecutive ads, each written whole or not at all.

Which ads are in which part depends on the number of ads alone. So a part that was
finished before a stop is kept, also if another number of ranks goes on.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.config.run import VectorType
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.index.manifest import DTYPE
from torchrec_adrec.runtime.files import put
from torchrec_adrec.schema import AD_ID

FEWEST_ROWS, MOST_ROWS, PARTS = 64, 32_768, 64
# Ids rise, so a reader of some ads skips all groups but theirs: a server that starts
# reads a sixteenth of the vectors in place of all.
GROUP_ROWS = 1024
NUMBERS = {"fp32": "<f4", "fp16": "<f2"}
SOURCE = b"adrec"  # key of the file's own metadata: what its vectors were made from

log = logging.getLogger(__name__)


def rows_of_a_part(ads: int) -> int:
    """Return how many ads a part holds, the last one fewer."""
    return min(max(-(-ads // PARTS), FEWEST_ROWS), MOST_ROWS)


@dataclass(frozen=True)
class Parts:
    """The parts of one export.

    Attributes:
        folder: of the files.
        ids: (N,) of all ads, rising.
        dtype: of the vectors that are written.
        source: what they are made from: checkpoint, schema, settings.
    """

    folder: Path
    ids: Int64s
    dtype: VectorType
    source: dict[str, str]

    @property
    def count(self) -> int:
        """The number of parts."""
        return -(-len(self.ids) // self.rows)

    @property
    def rows(self) -> int:
        """The number of ads of each part but the last."""
        return rows_of_a_part(len(self.ids))

    def slice_of(self, number: int) -> slice:
        """Return the ads of a part."""
        return slice(number * self.rows, min((number + 1) * self.rows, len(self.ids)))

    def path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{number:05d}.parquet"

    def missing(self) -> list[int]:
        """Return the parts that have to be made: not there, damaged, or of others."""
        missing = [n for n in range(self.count) if not self._is_done(n)]
        if len(missing) < self.count:
            log.info("%d of %d parts were kept", self.count - len(missing), self.count)
        return missing

    def write(self, number: int, vectors: Float32s) -> None:
        """Write the vectors, (n, D), of a part's ads."""
        ids = self.ids[self.slice_of(number)]
        write_vectors(self.path(number), ids, vectors, self.dtype, self.source)

    def _is_done(self, number: int) -> bool:
        path = self.path(number)
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowInvalid):
            return False
        written = (table.schema.metadata or {}).get(SOURCE)
        return written == _bytes(self.source, self.dtype) and np.array_equal(
            table[AD_ID].to_numpy(), self.ids[self.slice_of(number)]
        )


def write_vectors(
    path: Path,
    ids: Int64s,
    vectors: Float32s,
    dtype: VectorType = "fp32",
    source: dict[str, str] | None = None,
    key: str = AD_ID,
) -> None:
    """Write a Parquet file of `ad_id` and `vector`, one row per id.

    A vector is the bytes of its numbers and no list, with which Parquet stores two
    levels a number: to write them took nearly as long as the tower, and to read them
    five times as long as bytes. The field's metadata names the numbers' type.

    Args:
        path: of the file; it appears when it is whole.
        ids: (N,).
        vectors: (N, D).
        dtype: in which they are written.
        source: what they were made from.
        key: name of the ids' column, where they are no ads'.
    """
    numbers = rounded(vectors, dtype)
    kind = pa.binary(numbers.shape[1] * numbers.itemsize)
    column = pa.FixedSizeBinaryArray.from_buffers(
        kind, len(numbers), [None, pa.py_buffer(numbers)]
    )
    fields = [
        (key, pa.int64()),
        pa.field("vector", kind, metadata={DTYPE: NUMBERS[dtype]}),
    ]
    schema = pa.schema(fields, {SOURCE: _bytes(source or {}, dtype)})
    table = pa.Table.from_arrays([pa.array(ids), column], schema=schema)
    partial = path.with_name(path.name + ".partial")
    # Neither a dictionary nor compression makes anything of vectors' numbers.
    pq.write_table(
        table,
        partial,
        row_group_size=GROUP_ROWS,
        use_dictionary=False,
        compression="none",
        write_page_checksum=True,
        write_statistics=[key],
    )
    put(partial, path)


def rounded(vectors: Float32s, dtype: VectorType) -> NDArray[Any]:
    """Return vectors (n, D) as they are written, in one piece of memory.

    Raises:
        CheckpointError: one is too long for half floats.
    """
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(vectors, dtype=NUMBERS[dtype])
    if dtype == "fp16" and not np.isfinite(numbers).all():
        raise CheckpointError(
            f"a vector holds {np.abs(vectors).max():g}, half floats end at"
            f" {np.finfo(np.float16).max}; set export.dtype=fp32"
        )
    return numbers


def _bytes(source: dict[str, str], dtype: VectorType) -> bytes:
    # Parts that an older version wrote as lists of numbers are none of this export.
    written = {"dtype": dtype, "vectors": "bytes"}
    return json.dumps(source | written, sort_keys=True).encode()
