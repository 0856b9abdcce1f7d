"""Side tables: what is known about users or ads, joined to the log by their id.

They are read when the data set is opened and stay in memory, so the rows of the log
are joined a block at a time, in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.config.table import TableConfig
from torchrec_adrec.config.table_columns import FeatureColumn, SideTableConfig
from torchrec_adrec.data.adapters import columnar, table_files, values
from torchrec_adrec.data.adapters.rows import (
    ColumnRule,
    good_rows,
    keep_numbers,
)
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.errors import ConfigError

ID = "row:id"  # no feature's name has a colon
NUMBER = "row:number"


@dataclass(frozen=True)
class SideTable:
    """The features of users or ads, one row for each id.

    Attributes:
        path: the file.
        on: the column with the id, in the frames that are joined.
        source: the log's column with the id, for messages.
        rows: `ID` and the features.
        names: its columns, if the file is text without a header.
    """

    path: Path
    on: str
    source: str
    rows: pl.DataFrame
    names: tuple[str, ...] = ()

    def join(self, frame: pl.DataFrame, path: Path, bad: BadRows) -> pl.DataFrame:
        """The same rows in the same order, with the features of their users or ads.

        Args:
            frame: good rows of the log, with their number in the file as `NUMBER`.
            path: the log's file, for messages.
            bad: counts the rows whose id has no row here; their features are missing.
        """
        is_lost = ~frame[self.on].is_in(self.rows[ID].implode())
        if is_lost.any():
            lost = frame.filter(is_lost).select(NUMBER, self.on)
            reasons = (
                f"{path}:{number}: {self.source} {value!r} has no row in {self.path}"
                for number, value in lost.iter_rows()
            )
            bad.add_unmatched(str(self.path), len(lost), reasons)
        return frame.join(
            self.rows, left_on=self.on, right_on=ID, how="left", maintain_order="left"
        )


def open_side_tables(
    config: DataConfig, table: TableConfig, user: str
) -> tuple[TableConfig, tuple[SideTable, ...]]:
    """Read the side tables of a mapping.

    Args:
        config: limits.
        table: the whole mapping.
        user: the name of the user's column in the frames that are joined.

    Returns:
        The mapping of what is left to the log, and the side tables.

    Raises:
        ConfigError: a file is missing, or none of its columns is a feature.
        SchemaError: a file lacks its key, or has a column that is neither used nor
            ignored.
        DataError: too many of its rows are bad, as those of an id that it has twice.
    """
    log, tables = table, []
    if table.users is not None and table.user_id is not None:
        features, rows = _load(config, table, "users", table.users, table.user_id)
        log = log.model_copy(update={"user": _others(table.user, features)})
        path = Path(table.users.file)
        tables.append(SideTable(path, user, table.user_id, rows, table.users.names))
    if table.items is not None and table.ad_id is not None and table.key is not None:
        features, rows = _load(config, table, "items", table.items, table.ad_id)
        log = log.model_copy(update={"ad": _others(table.ad, features)})
        path = Path(table.items.file)
        side = SideTable(path, table.key, table.ad_id, rows, table.items.names)
        tables.append(side)
    return log, tuple(tables)


def _others(
    features: dict[str, FeatureColumn], joined: Sequence[str]
) -> dict[str, FeatureColumn]:
    return {name: f for name, f in features.items() if name not in joined}


def _load(
    config: DataConfig, table: TableConfig, name: str, side: SideTableConfig, id_: str
) -> tuple[tuple[str, ...], pl.DataFrame]:
    """The features that are made of a file's columns, and its rows."""
    path, key = Path(side.file), side.key or id_
    if not path.is_file():
        raise ConfigError(f"data.table.{name}: no such file: {path}")
    columns = table_files.types(path, side.names)
    columnar.require(path, columns, [key])
    of_side = table.user if name == "users" else table.ad
    # The id itself is read from the log, which has it in every row.
    features = {
        n: f
        for n, f in of_side.items()
        if f.kind != "history"  # which is made of the log, whatever the file holds
        and (f.column or n) in columns
        and (f.column or n) not in (key, id_)
    }
    if not features:
        raise ConfigError(
            f"data.table.{name}: no feature of its side is made of a column of {path};"
            f" found {', '.join(columns)}"
        )
    used = dict.fromkeys([key, *(f.column or n for n, f in features.items())])
    table_files.refuse_unused(path, columns, used, table.ignore)

    def raw(source: str) -> values.RawColumn:
        return values.RawColumn(path, source, columns[source], table.missing)

    rules = [values.required_text(ID, raw(key))]
    if name == "items" and table.key is not None:  # it may be a hash
        id_rule = values.feature(ID, raw(key), table.ad[table.key])
        rules = [values.required_ids(id_rule)]
    rules += [values.feature(n, raw(f.column or n), f) for n, f in features.items()]
    return tuple(features), _rows(side, list(used), rules, config)


def _rows(
    side: SideTableConfig, used: list[str], rules: list[ColumnRule], config: DataConfig
) -> pl.DataFrame:
    """The rows of a file, each id once: a second one would double its impressions."""
    bad, frames, path = BadRows(), [], Path(side.file)
    size = config.chunk_megabytes << 20
    for batch in table_files.batches(path, used, size, bad, side.names):
        kept, numbered = keep_numbers(batch, NUMBER)
        frames.append(good_rows(kept, [*rules, numbered], bad))
    rows = pl.concat(frames) if frames else pl.DataFrame()
    if not len(rows):
        raise ConfigError(f"{path}: no row can be used; first: {bad.first[:1]}")
    repeated = rows.filter(~pl.col(ID).is_first_distinct())
    for number, id_ in zip(repeated[NUMBER], repeated[ID], strict=True):
        bad.add(str(path), number, f"{rules[0].source} {id_!r} stands there twice")
    bad.rows_read = len(rows) - len(repeated)
    bad.check(config.max_bad_rows)
    bad.warn(str(path))
    return rows.unique(ID, keep="first", maintain_order=True).drop(NUMBER)
