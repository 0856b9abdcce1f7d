"""The division of the rows into training, validation and test: one split for each row.

time     trains on the first rows and tests on the last ones, as a live system would
user     keeps all rows of a user in one split, to test on users that were never seen
random   draws each row on its own, to compare with papers; training sees the future
leave_one_out   tests on the last click of each user and validates on the one before
files    tests on the last file, and draws each other row for training or validation
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from torchrec_adrec.arrays import UInt64s
from torchrec_adrec.config.data import SplitConfig
from torchrec_adrec.data.column import Chunk, scalar_column
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.keys import keys, salt, salted_hash
from torchrec_adrec.data.prepare.few_times import too_few_times
from torchrec_adrec.data.prepare.log_rows import NOBODY, LogRows
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore, time_of
from torchrec_adrec.errors import ConfigError, DataError

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)

Splits = NDArray[np.int8]


class Splitter(Protocol):
    """Assigns a split to every row of a chunk."""

    def assign(self, chunk: Chunk, ref: ChunkRef) -> Splits:
        """Return the split of each row, (B,), as its position in `SPLITS`."""


def splitter(
    config: SplitConfig, data: DataSet, store: ChunkStore, seed: int
) -> Splitter:
    """Make the splitter that the settings ask for.

    Args:
        config: how to split, and the shares.
        data: names the columns of the time and the user, if there are any.
        store: the chunks; their times are read to find the cuts.
        seed: draws the rows or users of a split by random or by user.

    Raises:
        ConfigError: a split by user is asked for and the data names no user, or not in
            every row.
        DataError: too many rows share one time.
    """
    if config.by == "time" and data.time is None:
        return ByRow(_cuts(config, store.num_rows))
    if config.by == "time":
        return ByTime.fit(config, store)
    if config.by == "random":
        return ByHash(config, salt(f"split {seed}"), None)
    if config.by == "files":
        return ByFile.of(config, data, salt(f"split {seed}"))
    if data.user is None:
        raise ConfigError(
            f"data.split.by = {config.by}, but the data names no user; split by time,"
            " or name the user's column (of an own table: data.table.user_id)"
        )
    if data.unknown_users:
        raise ConfigError(
            f"data.split.by = {config.by}, but {data.user} names no user in some rows,"
            " which could stand in any split; split by time or at random"
        )
    if config.by == "leave_one_out":
        return ByTable(leave_one_out(LogRows.of(store, data)))
    return ByHash(config, salt(f"split {seed}"), data.user)


@dataclass(frozen=True)
class ByRow:
    """Cuts rows that stand in time order by their number.

    Attributes:
        cuts: the first row of valid and the first row of test.
    """

    cuts: tuple[int, int]

    def assign(self, chunk: Chunk, ref: ChunkRef) -> Splits:
        """Assign by the number of the row among all rows."""
        rows = np.arange(ref.row, ref.row + chunk.num_rows)
        return np.searchsorted(self.cuts, rows, side="right").astype(np.int8)


@dataclass(frozen=True)
class ByTime:
    """Cuts rows by a time column, so that rows of one time share a split.

    Attributes:
        cuts: the first time of valid and the first time of test.
    """

    cuts: tuple[int, int]

    @classmethod
    def fit(cls, config: SplitConfig, store: ChunkStore) -> "ByTime":
        """Find the times that cut off the shares; this holds eight bytes per row.

        Raises:
            DataError: too many rows share one time.
        """
        times = np.sort(time_of(store).to_numpy())
        first, second = _cuts(config, len(times))
        # Past the last row, any later time cuts off nothing.
        low = times[first] if first < len(times) else times[-1] + 1
        high = times[second] if second < len(times) else times[-1] + 1
        if low == times[0] or (config.valid > 0 and low == high):
            raise DataError(too_few_times(config, times))
        return cls((int(low), int(high)))

    def assign(self, chunk: Chunk, ref: ChunkRef) -> Splits:
        """Assign by the time of the row."""
        assert chunk.time is not None
        return np.searchsorted(self.cuts, chunk.time, side="right").astype(np.int8)


@dataclass(frozen=True)
class ByHash:
    """Draws the split of each user, or of each row, by a hash.

    A hash needs no state and gives every rank the same answer. The shares hold on
    average, not exactly.

    Attributes:
        config: the shares.
        salt: mixed into the hash; depends on the seed.
        user: the user's column; None draws every row on its own.
    """

    config: SplitConfig
    salt: np.uint64
    user: str | None

    def assign(self, chunk: Chunk, ref: ChunkRef) -> Splits:
        """Assign by the hash of the user or of the row's number.

        Raises:
            DataError: a row has no user.
        """
        if self.user is None:
            rows = np.arange(ref.row, ref.row + chunk.num_rows, dtype=np.uint64)
            return self._splits_of(salted_hash(rows, self.salt))
        column = scalar_column(chunk.columns, self.user)
        if (column.codes < 0).any():
            row = ref.row_in_file + int(np.argmin(column.codes)) + 1
            raise DataError(
                f"raw file {ref.file + 1}, good row {row}: no {self.user}; a split by"
                " user needs one in every row: fill it in, leave such rows out, or set"
                " data.split.by=time or random"
            )
        hashed = salted_hash(keys(column.values), self.salt)
        return column.spread(self._splits_of(hashed), 0)

    def _splits_of(self, hashed: UInt64s) -> Splits:
        position = hashed.astype(np.float64) / 2**64  # uniform between 0 and 1
        cuts = (self.config.train, self.config.train + self.config.valid)
        return np.searchsorted(cuts, position, side="right").astype(np.int8)


@dataclass(frozen=True)
class ByFile:
    """Tests on the last file, and draws the validation rows out of all others.

    Attributes:
        test: the number of the file.
        valid: the share of the other rows that validate.
        salt: mixed into the hash of a row's number; depends on the seed.
    """

    test: int
    valid: float
    salt: np.uint64

    @classmethod
    def of(cls, config: SplitConfig, data: DataSet, salted: np.uint64) -> "ByFile":
        """Take the share that `config` gives the validation rows beside the training.

        Raises:
            ConfigError: there is only one file.
        """
        if len(data.files) < 2:
            raise ConfigError(
                f"data.split.by=files tests on the last file of data.raw, found"
                f" {data.files[0]} alone; name the training files before the test file"
            )
        valid = config.valid / (config.train + config.valid)
        return cls(len(data.files) - 1, valid, salted)

    def assign(self, chunk: Chunk, ref: ChunkRef) -> Splits:
        """Assign by the file, and by the hash of the row's number."""
        if ref.file == self.test:
            return np.full(chunk.num_rows, TEST, dtype=np.int8)
        rows = np.arange(ref.row, ref.row + chunk.num_rows, dtype=np.uint64)
        position = salted_hash(rows, self.salt).astype(np.float64) / 2**64
        return np.where(position < self.valid, VALID, TRAIN).astype(np.int8)


@dataclass(frozen=True)
class ByTable:
    """Gives rows the splits that were found before, from a table of all rows.

    Attributes:
        splits: (N,) of all rows, one byte each.
    """

    splits: Splits

    def assign(self, chunk: Chunk, ref: ChunkRef) -> Splits:
        """Assign by the number of the row among all rows."""
        return self.splits[ref.row : ref.row + chunk.num_rows]


def leave_one_out(rows: LogRows) -> Splits:
    """Return the split of each row of the log, (N,).

    From a user's last click on his rows are test rows, from the click before it
    validation rows. A user with fewer than three clicks is only trained on, as in the
    5-core data sets of the literature (Kang and McAuley, SASRec, ICDM 2018).
    """
    order = np.lexsort((np.arange(len(rows.users)), rows.times, rows.users))
    user, clicked = rows.users[order], rows.clicked[order]
    last = np.searchsorted(user, user, side="right") - 1  # of the row's user
    up_to = np.cumsum(clicked)
    # The clicks of the user from this row on, the row itself included.
    from_here = up_to[last] - up_to + clicked
    first = np.searchsorted(user, user, side="left")
    of_user = up_to[last] - up_to[first] + clicked[first]
    # A row without a click belongs to the click before it.
    behind = np.where(clicked, from_here, from_here + 1)
    split = np.select([behind == 1, behind == 2], [TEST, VALID], TRAIN)
    split[(of_user < 3) | (user == NOBODY)] = TRAIN
    splits = np.empty(len(order), dtype=np.int8)
    splits[order] = split
    return splits


def _cuts(config: SplitConfig, rows: int) -> tuple[int, int]:
    """Return the first row of valid and the first row of test.

    Rounding goes at the expense of training: the test takes exactly its share.
    """
    test = rows - int(config.test * rows)
    return test - int(config.valid * rows), test


def check_sizes(config: SplitConfig, sizes: dict[str, int]) -> None:
    """Refuse a split that has no rows although it should have some.

    Raises:
        DataError: names the split and its share.
    """
    total = sum(sizes.values())
    for name, rows in sizes.items():
        share = getattr(config, name)
        if not rows and share > 0 and config.by == "leave_one_out":
            raise DataError(
                f"{name} has none of {total} rows: data.split.by=leave_one_out needs"
                " users with three clicks or more"
            )
        if not rows and share > 0:
            raise DataError(
                f"data.split.{name} = {share:g} of {total} rows is no row; give more"
                " data or a larger share"
            )
