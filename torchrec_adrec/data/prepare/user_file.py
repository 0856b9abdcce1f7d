"""Users in a Parquet file: the values of requests, one row each."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import polars as pl

from torchrec_adrec.arrays import Columns
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.prepare.encoder import Encoder, NotFiniteError
from torchrec_adrec.data.request import BadRowError, raw_users
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.schema import Side

ROW = "row"  # of the file, from 0: names a user in what is made of the file


@dataclass(frozen=True)
class UserFile:
    """Users who are read and encoded some rows at a time.

    Attributes:
        path: of the file.
        count: number of users.
        encoder: of the run.
        key: a column that is no feature and names the user; None: the row does.
    """

    path: Path
    count: int
    encoder: Encoder
    key: str | None

    @classmethod
    def open(cls, path: Path, encoder: Encoder, key: str | None = None) -> Self:
        """Count the users.

        Args:
            path: of a Parquet file, with the columns of a request.
            encoder: of the run.
            key: see `UserFile`.

        Raises:
            ConfigError: it cannot be read, is empty, or has no column `key`; or the
                key's name is taken.
        """
        try:
            rows = pl.scan_parquet(path, glob=False)
            names = rows.collect_schema().names()
            count = int(rows.select(pl.len()).collect().item())
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"cannot read the users of {path}: {reason}") from None
        if key is not None and key not in names:
            raise ConfigError(f"{path} has no column {key!r}, expected one of {names}")
        if not count:
            raise ConfigError(f"{path} holds no users")
        users = cls(path, count, encoder, key)
        users.check_key([ROW])
        return users

    def check_key(self, columns: Collection[str]) -> None:
        """Refuse a key that is called like a column that is written beside it.

        One would replace the other, or stand under another name: with a key `row`
        users would get the ads of others.

        Args:
            columns: that are written beside the key.

        Raises:
            ConfigError: the key is one of them.
        """
        if self.key in columns:
            raise ConfigError(
                f"{self.path}: {self.key!r} cannot be the key, because a column of that"
                f" name is written beside it ({', '.join(columns)}); rename it"
            )

    def names(self, first: int, stop: int) -> pl.DataFrame:
        """Return what names some users: their rows, and the key if there is one."""
        rows = pl.DataFrame({ROW: pl.arange(first, stop, eager=True)})
        if self.key is None:
            return rows
        return rows.with_columns(self._read(first, stop, [self.key])[self.key])

    def encode(self, first: int, stop: int) -> Columns:
        """Return the encoded features of some users.

        Raises:
            DataError: a value cannot be one of its column; names file and row.
        """
        raw = self.raw(first, stop)
        try:
            return self.encoder.encode(raw, Side.USER)
        except NotFiniteError as error:
            raise self._bad(first + error.row, str(error)) from None

    def raw(self, first: int, stop: int) -> RawColumns:
        """Return the raw columns of some users.

        Raises:
            DataError: a value is of the wrong kind; names file and row.
        """
        names = pl.scan_parquet(self.path, glob=False).collect_schema().names()
        frame = self._read(first, stop, [n for n in names if n != self.key])
        try:
            return raw_users(frame, self.encoder.schema)
        except BadRowError as error:
            raise self._bad(first + error.row, error.message) from None

    def _bad(self, row: int, message: str) -> DataError:
        return DataError(f"{self.path}, row {row} (from 0): {message}")

    def chunks(self, rows: slice, size: int) -> Iterator[tuple[int, int]]:
        """Cut some rows into chunks of `size`, as first and stop."""
        for first in range(rows.start, rows.stop, size):
            yield first, min(first + size, rows.stop)

    def check(self, rows: slice, size: int = 65_536) -> None:
        """Encode some rows only to see that every one can be.

        Raises:
            DataError: names the first row that cannot.
        """
        for first, stop in self.chunks(rows, size):
            self.encode(first, stop)

    def _read(self, first: int, stop: int, names: list[str]) -> pl.DataFrame:
        rows = pl.scan_parquet(self.path, glob=False).slice(first, stop - first)
        return rows.select(names).collect()
