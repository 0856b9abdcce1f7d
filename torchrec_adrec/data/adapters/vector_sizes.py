"""The sizes of vectors, taken from the first one that the files hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torchrec_adrec.config.table import TableConfig
from torchrec_adrec.config.table_columns import FeatureColumn, VectorColumn
from torchrec_adrec.data.adapters import table_files, values
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import SchemaError

CHUNK_BYTES = 1 << 20  # of a file that are looked through at a time


def with_sizes(table: TableConfig, files: Sequence[Path]) -> TableConfig:
    """Fill in the size of every vector that has none.

    Args:
        table: the mapping.
        files: where a vector may stand: side tables first, then the log.

    Raises:
        SchemaError: a column has no vector in any row.
    """

    def sized(columns: Mapping[str, FeatureColumn]) -> dict[str, FeatureColumn]:
        return {
            name: column.model_copy(update={"size": _size(name, column, table, files)})
            if isinstance(column, VectorColumn) and column.size is None
            else column
            for name, column in columns.items()
        }

    update = {"user": sized(table.user), "ad": sized(table.ad)}
    return table.model_copy(update=update)


def _size(
    name: str, column: VectorColumn, table: TableConfig, files: Sequence[Path]
) -> int:
    source = column.column or name
    for path in files:
        types = table_files.types(path)
        if source not in types:
            continue
        raw = values.RawColumn(path, source, types[source], table.missing)
        numbers = values.components(raw, column.separator)
        for batch in table_files.batches(path, [source], CHUNK_BYTES, BadRows()):
            lengths = batch.frame.select(numbers.list.len()).to_series().drop_nulls()
            if len(lengths) and lengths[0]:
                return int(lengths[0])
    raise SchemaError(
        f"data.table: {name} is a vector, and no row of {source} has a value; leave it"
        " out, or set its `size`"
    )
