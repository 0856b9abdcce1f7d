"""Your own data: Parquet, CSV or TSV (also .gz), with columns as `data.table` says.

docs/own_data.md is the guide. A missing value is a null, in text also one of the texts
in `table.missing`, and in Parquet also NaN, which pandas writes for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.config.table import TableConfig
from torchrec_adrec.config.table_columns import (
    EmbeddedTextColumn,
    FeatureColumn,
    HistoryColumn,
    LabelColumn,
    ListColumn,
    NumberColumn,
    SequenceColumn,
    VectorColumn,
)
from torchrec_adrec.data.adapters import columnar, table_files, values
from torchrec_adrec.data.adapters.adapter import Adapter, RawFiles
from torchrec_adrec.data.adapters.rows import ColumnRule, good_rows, keep_numbers
from torchrec_adrec.data.adapters.side_tables import (
    NUMBER,
    SideTable,
    open_side_tables,
)
from torchrec_adrec.data.adapters.vector_sizes import with_sizes
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import DataSet, Negatives, raw_files
from torchrec_adrec.data.text_encoders import open_encoder
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
    VectorFeature,
)

Feature = DenseFeature | SparseFeature | SequenceFeature | VectorFeature
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
    joined = [Path(side.file) for side in (table.users, table.items) if side]
    table = with_sizes(table, [*filter(Path.is_file, joined), *files])
    log, sides = open_side_tables(config, table, USER)
    for path in files:
        _check_columns(path, log, sides)
    features = schema(table)
    ids = [f for f in features.sparse_of(Side.AD) if f.kind != "number"]
    return DataSet(
        schema=features,
        files=files,
        read=_Reader(log, sides, config.chunk_megabytes << 20).read,
        time=TIME if table.time else None,
        user=USER if table.user_id else None,
        sides="data.table.user, data.table.ad",
        ad=table.key,
        propensity=PROPENSITY if table.propensity else None,
        items=tuple(f.source for f in ids),
        histories={
            name: feature.of
            for name, feature in table.user.items()
            if isinstance(feature, HistoryColumn)
        },
        negatives=_negatives(table),
        copies={
            TIME: _features_of(table.time.column if table.time else None, table),
            USER: _features_of(table.user_id, table),
        },
    )


def files_read(config: DataConfig) -> tuple[Path, ...]:
    """The log, and its side tables: rows are made of both."""
    table = config.table
    sides = [s for s in (table.users, table.items) if s] if table else []
    return (*raw_files(config), *(Path(side.file) for side in sides))


ADAPTER: Adapter = RawFiles(open_data, files_read)


def _negatives(table: TableConfig) -> Negatives | None:
    first = next(iter(table.labels.values()))
    if not first.positives_only:
        return None
    return Negatives(first.negatives, first.negatives_by)


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
            vectors=tuple(f for f in features if isinstance(f, VectorFeature)),
            labels=tuple(_label(name, column) for name, column in table.labels.items()),
        )
    except ValidationError as error:
        reason = "; ".join(fault["msg"] for fault in error.errors())
        raise ConfigError(f"data.table: {reason}") from None


def _label(name: str, column: LabelColumn) -> Label:
    return Label(name=name, kind=column.kind, max_value=column.max_value)


def _features(name: str, side: Side, column: FeatureColumn) -> Iterator[Feature]:
    if isinstance(column, HistoryColumn | SequenceColumn):
        yield SequenceFeature(
            name=name,
            side=side,
            source=name,
            max_length=column.max_length,
            shares_ids_with=column.shares_ids_with,
        )
    elif isinstance(column, ListColumn):
        yield SequenceFeature(
            name=name,
            side=side,
            source=name,
            max_length=column.max_length,
            ordered=False,
        )
    elif isinstance(column, VectorColumn):
        assert column.size is not None, "taken from the data by now"
        yield VectorFeature(name=name, side=side, source=name, size=column.size)
    elif isinstance(column, EmbeddedTextColumn):
        encoder = open_encoder(column.encoder)
        yield VectorFeature(
            name=name,
            side=side,
            source=name,
            size=encoder.size,
            encoder=encoder.name,
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


def _check_columns(path: Path, log: TableConfig, sides: tuple[SideTable, ...]) -> None:
    types, used = table_files.types(path, log.names), log.columns()
    elsewhere = "".join(
        f"; in {s.path}: {', '.join(table_files.types(s.path, s.names))}" for s in sides
    )
    columnar.require(path, types, used, elsewhere)
    table_files.refuse_unused(path, types, used, log.ignore)
    _columns(path, types, log)  # refuses a type that has no reading


@dataclass(frozen=True)
class _Reader:
    """Reads the files of the log.

    Attributes:
        log: the mapping of its columns.
        sides: what is joined to them.
        chunk_bytes: held at a time.
    """

    log: TableConfig
    sides: tuple[SideTable, ...]
    chunk_bytes: int

    def read(self, path: Path, bad: BadRows) -> Iterator[pl.DataFrame]:
        """`DataSet.read`."""
        log, size = self.log, self.chunk_bytes
        columns = _columns(path, table_files.types(path, log.names), log)
        used = log.columns()
        for rows in table_files.batches(path, used, size, bad, log.names):
            kept, numbered = keep_numbers(rows, NUMBER)
            frame = good_rows(kept, [*columns, numbered], bad)
            for side in self.sides:
                frame = side.join(frame, path, bad)
            if len(frame):
                yield frame.drop(NUMBER)


def _columns(
    path: Path, types: table_files.Types, table: TableConfig
) -> list[ColumnRule]:
    """The rules of one file's columns: Parquet files may differ in their types."""

    def raw(source: str) -> values.RawColumn:
        return values.RawColumn(path, source, types[source], table.missing)

    # The first label is the click: a row without it teaches nothing.
    rules = [
        values.always(name)
        if column.positives_only
        else values.label(
            _label(name, column),
            raw(column.column or name),
            required=i == 0,
            at_least=column.at_least,
        )
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
