"""Your own data: Parquet, CSV or TSV (also .gz), with columns as `data.table` says.

docs/own_data.md is the guide. A missing value is a null, in text also one of the texts
in `table.missing`, and in Parquet also NaN, which pandas writes for it.
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
    LabelColumn,
    NumberColumn,
    SequenceColumn,
    TableConfig,
)
from torchrec_adrec.data.adapters import columnar, delimited, values
from torchrec_adrec.data.adapters.adapter import Adapter, RawFiles
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

# Names of the time, the user and the propensity among the raw columns. The name of a
# feature has no colon, so that none can be the same.
TIME, USER, PROPENSITY = "row:time", "row:user", "row:propensity"


def open_data(config: DataConfig) -> DataSet:
    """Find the files and check their columns.

    Raises:
        ConfigError: there is no `data.table`, a file is missing or of unknown kind, or
            the mapping makes no schema.
        SchemaError: a file lacks a column, or has one that is neither used nor ignored.
    """
    table = config.table
    if table is None:
        raise ConfigError("data.table: missing; it says what the columns mean")
    files = raw_files(config)
    for path in files:
        _check_columns(path, _types(path), table)
    features = schema(table)
    ids = [f for f in features.sparse_of(Side.AD) if f.kind != "number"]
    return DataSet(
        schema=features,
        files=files,
        read=partial(_read, table=table, chunk_bytes=config.chunk_megabytes << 20),
        time=TIME if table.time else None,
        user=USER if table.user_id else None,
        sides="data.table.user, data.table.ad",
        ad=table.key,
        propensity=PROPENSITY if table.propensity else None,
        items=tuple(f.source for f in ids),
        copies={
            TIME: _features_of(table.time.column if table.time else None, table),
            USER: _features_of(table.user_id, table),
        },
    )


ADAPTER: Adapter = RawFiles(open_data)


def _features_of(source: str | None, table: TableConfig) -> tuple[str, ...]:
    """The names of the features that are made of one column of the file."""
    return tuple(name for name, _, column in table.features() if column == source)


def schema(table: TableConfig) -> Schema:
    """The features that a mapping asks for; a raw column has its feature's name.

    Raises:
        ConfigError: a name is used twice, a side has no id, the first label is a value.
    """
    features = [
        feature
        for side, columns in ((Side.USER, table.user), (Side.AD, table.ad))
        for name, column in columns.items()
        for feature in _features(name, side, column)
    ]
    try:
        return Schema(
            dense=tuple(f for f in features if isinstance(f, DenseFeature)),
            sparse=tuple(f for f in features if isinstance(f, SparseFeature)),
            sequences=tuple(f for f in features if isinstance(f, SequenceFeature)),
            labels=tuple(_label(name, column) for name, column in table.labels.items()),
        )
    except ValidationError as error:
        reason = "; ".join(fault["msg"] for fault in error.errors())
        raise ConfigError(f"data.table: {reason}") from None


def _label(name: str, column: LabelColumn) -> Label:
    return Label(name=name, kind=column.kind, max_value=column.max_value)


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
    path: Path, types: dict[str, pl.DataType], table: TableConfig
) -> None:
    used = table.columns()
    columnar.require(path, types, used)
    # A column that is forgotten by a slip costs quality and nobody would see it.
    unused = [
        name
        for name in types
        if name not in used and not any(fnmatch(name, p) for p in table.ignore)
    ]
    if unused:
        raise SchemaError(
            f"{path}: columns {unused} are not used; make them features, or name them"
            " in data.table.ignore"
        )
    _columns(path, types, table)  # refuses a type that has no reading


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
    """The rules of one file's columns: Parquet files may differ in their types."""

    def raw(source: str) -> values.RawColumn:
        return values.RawColumn(path, source, types[source], table.missing)

    # The first label is the click: a row without it teaches nothing.
    rules = [
        values.label(_label(name, column), raw(column.column or name), required=i == 0)
        for i, (name, column) in enumerate(table.labels.items())
    ]
    rules += [values.feature(n, raw(column), f) for n, f, column in table.features()]
    rules = [values.required_ids(r) if r.name == table.key else r for r in rules]
    if table.time:
        rules.append(values.time(TIME, raw(table.time.column), table.time))
    if table.user_id:
        rules.append(values.required_text(USER, raw(table.user_id)))
    if table.propensity:
        rules.append(values.probability(PROPENSITY, raw(table.propensity)))
    return rules
