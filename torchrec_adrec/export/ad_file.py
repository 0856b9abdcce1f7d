"""Files of an update: raw rows of ads, and ids of ads to remove."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.adapters import columnar, delimited
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.request import column_kinds
from torchrec_adrec.data.vectors import is_missing
from torchrec_adrec.errors import ConfigError, DataError, ManifestError, reason
from torchrec_adrec.schema import Schema, Side

CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Places:
    """Where rows of a file stand, for messages.

    Attributes:
        path: the file.
        numbers: (n,) from 1, of the line in text, of the row in Parquet.
        unit: which of the two.
    """

    path: Path
    numbers: Int64s
    unit: Literal["line", "row"] = "line"

    def fault(self, row: int, text: str) -> DataError:
        """Return the error of one row, which names file and line."""
        where = "row " if self.unit == "row" else ""
        return DataError(f"{self.path}:{where}{self.numbers[row]}: {text}")

    def check_distinct(self, ids: Int64s) -> None:
        """Refuse an ad that is there twice.

        Raises:
            DataError: names both places.
        """
        order = np.argsort(ids, kind="stable")
        same = np.flatnonzero(np.diff(ids[order]) == 0)
        if len(same):
            first, second = order[same[0]], order[same[0] + 1]
            raise self.fault(
                int(second), f"ad {ids[second]} stands in {self.numbers[first]} already"
            )


@dataclass(frozen=True)
class AdRows:
    """Raw values of ads, one row each.

    Attributes:
        frame: the raw columns of the ad's side, as texts, numbers or nulls.
        places: of the rows.
    """

    frame: pl.DataFrame
    places: Places

    @classmethod
    def read(cls, path: Path, schema: Schema) -> Self:
        """Read a file whose columns are those of the ad's side, each of them.

        Args:
            path: .parquet, .csv or .tsv, text with a header. Sets and vectors are
                lists, which text does not have.
            schema: of the run.

        Raises:
            ConfigError: it cannot be read, or is of another kind.
            DataError: a line has too many or too few fields, or there are no rows.
            SchemaError: a column is missing, or no column of an ad.
        """
        names = tuple(column_kinds(schema, Side.AD))
        if path.suffix == ".parquet":
            _check_columns(path, list(columnar.types(path)), names)
            parts = list(columnar.batches(path, names, CHUNK_BYTES))
        elif delimited.is_text(path):
            _check_columns(path, delimited.header(path), names)
            bad = BadRows()
            parts = list(delimited.batches(path, names, CHUNK_BYTES, bad))
            if bad.count:
                raise DataError("; ".join(bad.first[:3]))
        else:
            raise ConfigError(f"{path}: expected a file of .parquet, .csv or .tsv")
        parts = [part for part in parts if len(part.frame)]
        if not parts:
            raise DataError(f"{path} holds no ads")
        numbers = np.concatenate([part.numbers for part in parts])
        frame = pl.concat([part.frame for part in parts])
        return cls(frame, Places(path, numbers, parts[0].unit))

    @classmethod
    def of_catalog(cls, rows: pl.DataFrame, schema: Schema, path: Path) -> Self:
        """Take the raw values that a catalog shows of ads, as if a file held them.

        Args:
            rows: of the catalog.
            schema: of the run.
            path: which messages name.

        Raises:
            ManifestError: it has no such column.
        """
        names = column_kinds(schema, Side.AD)
        vectors = {f.source: f for f in schema.vectors_of(Side.AD) if not f.encoder}
        columns = {n: n if n in vectors else f"raw_{n}" for n in names}
        missing = [name for name in names if columns[name] not in rows.columns]
        if missing:
            raise ManifestError(
                f"{path} has no {missing}, which an ad of the data has now; remove"
                " these changes and add the ads again"
            )
        frame = rows.select(pl.col(column).alias(n) for n, column in columns.items())
        frame = frame.with_columns(
            _components(rows[f.name], n) for n, f in vectors.items()
        )
        return cls(frame, Places(path, np.arange(1, len(rows) + 1), "row"))


def _components(rows: pl.Series, name: str) -> pl.Series:
    """Return the raw vectors behind a catalog's column, null where missing."""
    missing = is_missing(rows.to_numpy())
    values = [
        None if m else r[:-1] for r, m in zip(rows.to_list(), missing, strict=True)
    ]
    return pl.Series(name, values, dtype=pl.List(pl.Float64))


@dataclass(frozen=True)
class AdIds:
    """Ids of ads, one a line.

    Attributes:
        ids: (n,), each once.
        places: of the lines.
    """

    ids: Int64s
    places: Places

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a text of ids; empty lines count as lines and as nothing else.

        Raises:
            ConfigError: it cannot be read.
            DataError: a line is no id, or an id is there twice.
        """
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {reason(error)}") from None
        numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
        places = Places(path, np.array(numbers, dtype=np.int64))
        texts = [lines[number - 1].strip() for number in numbers]
        for row, text in enumerate(texts):
            if not (text.isascii() and text.isdigit() and int(text) < 2**63):
                raise places.fault(
                    row, f"found {text[:40]!r}, expected the ad_id of an answer"
                )
        # Not by way of a float, which has no digits for ids above 2^53.
        ids = np.array([int(text) for text in texts], dtype=np.int64)
        if not len(ids):
            raise DataError(f"{path} holds no ids")
        places.check_distinct(ids)
        return cls(ids, places)


def _check_columns(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    columnar.require(path, columns, names)
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise DataError(
            f"{path}: columns {unknown} are none of an ad, which has {list(names)};"
            " leave them out"
        )
