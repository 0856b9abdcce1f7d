"""One's own data: Parquet, CSV or TSV (also .gz), with columns as `data.table` says.

How to: docs/own_data.md. A missing value is a null, in text also what `table.missing`
lists, in Parquet also NaN, which pandas writes for it.
"""

from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.config.table import (
    FeatureColumn,
    NumberColumn,
    SequenceColumn,
    TableConfig,
)
from torchrec_adrec.data.adapters import columnar, delimited, values
from torchrec_adrec.data.adapters.rows import ColumnRule, RawRows, good_rows
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import DataSet, raw_files
from torchrec_adrec.errors import ConfigError, SchemaError
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)

TIME, USER = "row:time", "row:user"  # a feature's name has no colon


def open_data(config: DataConfig) -> DataSet:
    """Find the files and check their columns.

    Raises:
        ConfigError: no `data.table`, a file that is missing or of unknown kind, or a
            mapping that makes no schema.
        SchemaError: a file lacks a column, or has one that is neither used nor ignored.
    """
    table = config.table
    if table is None:
        raise ConfigError("data.table: missing; it says what the columns mean")
    files = raw_files(config)
    for path in files:
        _check_columns(path, _types(path), table)
    made = schema(table)
    return DataSet(
        schema=made,
        files=files,
        read=partial(_read, table=table, chunk_bytes=config.chunk_megabytes << 20),
        time=TIME if table.time else None,
        user=USER if table.user_id else None,
        sides="data.table.user, data.table.ad",
        ad=table.key,
        items=tuple(f.source for f in made.sparse_of(Side.AD) if f.kind != "number"),
        copies={
            TIME: _made_of(table.time.column if table.time else None, table),
            USER: _made_of(table.user_id, table),
        },
    )


def _made_of(source: str | None, table: TableConfig) -> tuple[str, ...]:
    """The features of one column of the file."""
    return tuple(name for name, _, column in table.features() if column == source)


def schema(table: TableConfig) -> Schema:
    """The features that a mapping asks for; the raw columns bear the features' names.

    Raises:
        ConfigError: a name is used twice, a side has no id, the first label is a value.
    """
    made = [
        feature
        for side, columns in ((Side.USER, table.user), (Side.AD, table.ad))
        for name, column in columns.items()
        for feature in _features(name, side, column)
    ]
    try:
        return Schema(
            dense=tuple(f for f in made if isinstance(f, DenseFeature)),
            sparse=tuple(f for f in made if isinstance(f, SparseFeature)),
            sequences=tuple(f for f in made if isinstance(f, SequenceFeature)),
            labels=tuple(
                Label(name=name, kind=label.kind, max_value=label.max_value)
                for name, label in table.labels.items()
            ),
        )
    except ValidationError as error:
        reason = "; ".join(fault["msg"] for fault in error.errors())
        raise ConfigError(f"data.table: {reason}") from None


def _features(
    name: str, side: Side, column: FeatureColumn
) -> Iterator[DenseFeature | SparseFeature | SequenceFeature]:
    if isinstance(column, SequenceColumn):
        yield SequenceFeature(
            name=name,
            side=side,
            source=name,
            max_length=column.max_length,
            shares_ids_with=column.shares_ids_with,
        )
    elif isinstance(column, NumberColumn):
        yield DenseFeature(
            name=name, side=side, source=name, transform=column.transform
        )
        if column.buckets:
            yield SparseFeature(
                name=f"{name}_bucket",
                side=side,
                source=name,
                kind="number",
                buckets=column.buckets,
            )
    else:
        yield SparseFeature(name=name, side=side, source=name, kind=column.kind)


def _types(path: Path) -> dict[str, pl.DataType]:
    if path.suffix == ".parquet":
        return dict(columnar.types(path))
    if delimited.is_text(path):
        return dict.fromkeys(delimited.header(path), pl.String())
    raise ConfigError(
        f"data.raw: {path}: expected .parquet, .csv, .tsv, .csv.gz or .tsv.gz"
    )


def _check_columns(
    path: Path, found: dict[str, pl.DataType], table: TableConfig
) -> None:
    used = table.columns()
    columnar.require(path, found, used)
    loose = [
        name
        for name in found
        if name not in used and not any(fnmatch(name, p) for p in table.ignore)
    ]
    if loose:
        raise SchemaError(
            f"{path}: columns {loose} are not used; make them features, or name them in"
            " data.table.ignore"
        )
    _columns(path, found, table)


def _read(
    path: Path, bad: BadRows, table: TableConfig, chunk_bytes: int
) -> Iterator[pl.DataFrame]:
    columns = _columns(path, _types(path), table)
    for rows in _rows(path, bad, table, chunk_bytes):
        frame = good_rows(rows, columns, bad)
        if len(frame):
            yield frame


def _rows(
    path: Path, bad: BadRows, table: TableConfig, chunk_bytes: int
) -> Iterator[RawRows]:
    if path.suffix == ".parquet":
        return columnar.batches(path, table.columns(), chunk_bytes)
    return delimited.batches(path, table.columns(), chunk_bytes, bad)


def _columns(
    path: Path, types: dict[str, pl.DataType], table: TableConfig
) -> list[ColumnRule]:
    """What is made of the columns of one file: Parquet files may differ in types."""

    def given(source: str) -> values.Given:
        return values.Given(path, source, types[source], table.missing)

    made = [
        values.label(name, given(label.column or name), label, needed=i == 0)
        for i, (name, label) in enumerate(table.labels.items())
    ]
    made += [values.feature(n, given(column), f) for n, f, column in table.features()]
    made = [values.needed(c) if c.name == table.key else c for c in made]
    if table.time:
        made.append(values.time(TIME, given(table.time.column), table.time))
    if table.user_id:
        made.append(values.needed_text(USER, given(table.user_id)))
    return made
