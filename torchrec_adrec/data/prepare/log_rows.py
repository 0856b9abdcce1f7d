"""Who did what when: the users, times, clicks and ads of all rows of the log at once.

Histories, drawn negatives and a split by user and time ask what else a user did, in
whichever file that stands. So every rank reads these few columns of all chunks, which
takes about 20 bytes of memory for each row of the log.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Int64s
from torchrec_adrec.data.column import Chunk, Column, scalar_column
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore, map_chunks

NOBODY = -1  # in place of a user or an ad that is missing


@dataclass(frozen=True)
class LogRows:
    """The rows of the log, N, in the order of the files.

    Attributes:
        users: (N,) small numbers from 0; `NOBODY` where no user is named.
        times: (N,) small numbers from 0 in the order of time; equal times are equal.
            Without a time column every row has a time of its own.
        clicked: (N,) whether the first label is 1.
    """

    users: Int64s
    times: Int64s
    clicked: Bools

    @classmethod
    def of(cls, store: ChunkStore, data: DataSet) -> "LogRows":
        """Read them of all chunks; `data.user` must name the user."""
        user, click = data.user, data.schema.labels[0].name
        assert user is not None, "only data that name a user are asked"

        def read(ref: ChunkRef) -> tuple[Int64s, Int64s, Bools]:
            chunk = ref.load()
            rows = np.arange(ref.row, ref.row + chunk.num_rows)
            times = rows if chunk.time is None else np.array(chunk.time)
            return _row_keys(chunk, user), times, chunk.labels[click] == 1

        users, times, clicked = (
            np.concatenate(p) for p in zip(*map_chunks(store.chunks, read), strict=True)
        )
        numbered = np.unique(users, return_inverse=True)[1]
        numbered[users == NOBODY] = NOBODY
        return cls(numbered, np.unique(times, return_inverse=True)[1], clicked)

    @property
    def moments(self) -> Int64s:
        """User and time of each row as one number, (N,): it rises with the user."""
        return self.moment(self.users, self.times)

    def moment(self, users: Int64s, times: Int64s) -> Int64s:
        """Return one number for each pair of a user and a time."""
        return users * (int(self.times.max()) + 1) + times


@dataclass(frozen=True)
class LogAds:
    """The ad of each row of the log, as a small number.

    Attributes:
        codes: (N,) positions in `keys`; `NOBODY` where a row has no value.
        keys: (V,) of the distinct values, rising.
    """

    codes: Int64s
    keys: Int64s

    @classmethod
    def of(cls, store: ChunkStore, of_chunk: Callable[[Chunk], Int64s]) -> "LogAds":
        """Number the ads.

        Args:
            store: the chunks.
            of_chunk: returns the key of each row's ad, (B,).
        """
        parts = map_chunks(store.chunks, lambda ref: of_chunk(ref.load()))
        known, codes = np.unique(np.concatenate(list(parts)), return_inverse=True)
        if len(known) and known[0] == NOBODY:
            return cls(codes - 1, known[1:])
        return cls(codes, known)

    def position(self, values: Int64s) -> Int64s:
        """Return the code of each key, (K,); `NOBODY` of one that no row has."""
        places = np.searchsorted(self.keys, values)
        places[places == len(self.keys)] = 0
        return np.where(self.keys[places] == values, places, NOBODY)


def value_ads(store: ChunkStore, source: str) -> LogAds:
    """Return the values of one raw column of the ad as `LogAds`."""
    return LogAds.of(store, lambda chunk: _row_keys(chunk, source))


def value_texts(store: ChunkStore, source: str, ads: LogAds) -> pl.Series:
    """Return the raw value of each code of `value_ads`, (V,)."""
    parts = [scalar_column(ref.load().columns, source).values for ref in store.chunks]
    values = pl.concat(parts).unique()
    places = ads.position(keys(values))
    return values.gather(np.argsort(places))


def _row_keys(chunk: Chunk, source: str) -> Int64s:
    column: Column = scalar_column(chunk.columns, source)
    return column.spread(keys(column.values), NOBODY)
