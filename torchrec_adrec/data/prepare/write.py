"""The last pass, in which every row is encoded, counted and written into its split."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_adrec.arrays import Bools, Columns, Int64s, UInt64s
from torchrec_adrec.data.catalog import ad_ids, log_q
from torchrec_adrec.data.column import Chunk, scalar_column
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.prepare.encoder import Encoder, NotFiniteError
from torchrec_adrec.data.prepare.fold_statistics import FOLD, user_keys
from torchrec_adrec.data.prepare.row_hashes import (
    count_repeated,
    full_and_compared_hashes,
    sample_hashes,
)
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore, map_chunks, time_of
from torchrec_adrec.data.prepare.split_counts import PERIODS, SplitCounts
from torchrec_adrec.data.prepare.splits import SPLITS, TRAIN, Splits, Splitter
from torchrec_adrec.errors import DataError
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import Ranks
from torchrec_adrec.schema import (
    AD_ID,
    LOG_Q,
    NO_USER,
    PROPENSITY,
    USER_KEY,
    Schema,
    Side,
)

ROW_GROUP_ROWS = 65_536  # 64k-256k decode fastest; small enough to shuffle by group


@dataclass
class SplitWriter:
    """Encodes and writes the rows of this rank's files.

    Attributes:
        data: what the raw columns mean.
        encoder: fitted on the training rows.
        ads: the catalog with raw values, for the share of each ad (`log_q`).
        store: the chunks.
        splitter: gives each row its split.
        out: the folder of the prepared data.
        not_compared: raw columns that do not count when rows of two splits are
            compared.
    """

    data: DataSet
    encoder: Encoder
    ads: pl.DataFrame
    store: ChunkStore
    splitter: Splitter
    out: Path
    not_compared: tuple[str, ...] = ()
    _hashes: dict[bool, list[UInt64s]] = field(
        default_factory=lambda: {True: [], False: []}
    )

    def __post_init__(self) -> None:
        self.tally = SplitCounts(self.encoder.schema)
        times = None if self.data.time is None else time_of(self.store).to_numpy()
        self._span = None if times is None else (int(times.min()), int(times.max()))

    def write(self, ranks: Ranks) -> None:
        """Write the Parquet files, and this rank's counts into the folder `raw`."""
        for name in SPLITS:
            (self.out / name).mkdir(exist_ok=True)
        with Progress("prepare: encoding", unit="rows") as progress:
            for tally, hashes, rows in map_chunks(self.store.of(ranks), self._write):
                self.tally.join(tally)
                for is_train, sample in hashes:
                    self._hashes[is_train].append(sample)
                progress.advance(rows)
        raw = self.out / "raw"
        self.tally.save(raw / f"tally-{ranks.rank:05d}.npz")
        joined = {str(k): np.concatenate([_NONE, *v]) for k, v in self._hashes.items()}
        np.savez(raw / f"hashes-{ranks.rank:05d}.npz", **joined)  # type: ignore[arg-type]
        ranks.barrier()

    def _write(
        self, ref: ChunkRef
    ) -> tuple[SplitCounts, list[tuple[bool, UInt64s]], int]:
        """Write one chunk.

        Returns:
            Its counts, the row hashes to compare (for training rows or not), its rows.
        """
        chunk, tally = ref.load(), SplitCounts(self.encoder.schema)
        splits = self.splitter.assign(chunk, ref)
        hashes, to_compare = full_and_compared_hashes(chunk, self.not_compared)
        # Chunks are encoded in parallel, so each needs a count of repairs of its own.
        encoder = replace(self.encoder, repaired={})
        columns = self._columns(encoder, chunk, ref, splits)
        missing = _missing(encoder.schema, chunk)
        tally.add_repaired(encoder.repaired)
        periods, compared = self._periods(chunk, ref), []
        for label in self.encoder.schema.label_names:
            tally.add_period(label, columns[label], periods)
        for split in np.unique(splits).tolist():
            rows = splits == split
            split_columns = _select(rows, columns)
            tally.add(split, split_columns, hashes[rows], _select(rows, missing))
            sample = sample_hashes(to_compare[rows], self.store.num_rows)
            compared.append((split == TRAIN, sample))
            part = f"part-{ref.file:05d}-{ref.number:06d}.parquet"
            write_rows(self.out / SPLITS[split] / part, split_columns)
        return tally, compared, chunk.num_rows

    def _columns(
        self, encoder: Encoder, chunk: Chunk, ref: ChunkRef, splits: Splits
    ) -> Columns:
        columns: Columns = dict(chunk.labels)
        folds = self._folds(ref, splits)
        try:
            for side in Side:
                columns |= encoder.encode_rows(chunk.columns, side, folds)
            columns |= encoder.encode_cross(chunk.columns, folds)
        except NotFiniteError as error:
            file = self.data.files[ref.file]
            row = ref.row_in_file + error.row + 1
            raise DataError(f"{file}, good row {row}: {error}") from None
        if encoder.statistics is not None and encoder.statistics.keeps_folds:
            assert folds is not None, "of rows with statistics"
            columns |= user_keys(encoder, chunk.columns) | {FOLD: folds}
        if self.data.user is not None:
            # No model reads it; lists are judged, and rows resampled, by user.
            user = scalar_column(chunk.columns, self.data.user)
            columns[USER_KEY] = user.spread(keys(user.values), NO_USER)
        if self.data.propensity is not None:
            column = scalar_column(chunk.columns, self.data.propensity)
            columns[PROPENSITY] = column.spread(column.values.to_numpy(), np.nan)
        ids = ad_ids(chunk.columns, self.data.ad_key)
        return columns | {AD_ID: ids, LOG_Q: log_q(self.ads, ids)}

    def _folds(self, ref: ChunkRef, splits: Splits) -> Int64s | None:
        """Return the folds of a chunk's training rows; None without statistics."""
        statistics = self.encoder.statistics
        if statistics is None:
            return None
        assert statistics.fold_of is not None, "fitted in this stage"
        return statistics.fold_of.of(ref.row, splits == TRAIN)

    def _periods(self, chunk: Chunk, ref: ChunkRef) -> Int64s:
        """Return the period of each row, by its time or else by its number.

        Without a time column the rows stand in time order.
        """
        if chunk.time is None or self._span is None:
            rows = np.arange(ref.row, ref.row + chunk.num_rows)
            return rows * PERIODS // self.store.num_rows
        first, last = self._span
        return (chunk.time - first) // ((last - first) // PERIODS + 1)


_NONE = np.zeros(0, dtype=np.uint64)


def _select(rows: Bools, columns: Columns) -> Columns:
    if rows.all():
        return columns
    return {name: column[rows] for name, column in columns.items()}


def _missing(schema: Schema, chunk: Chunk) -> Columns:
    """Return where each number without a bucketed id is missing, (B,) by feature.

    Once encoded, a missing number cannot be told from the mean.
    """
    missing = {}
    for feature in schema.dense_alone:
        column = scalar_column(chunk.columns, feature.source)
        missing[feature.name] = column.codes < 0
    return missing


def write_rows(path: Path, columns: Columns) -> None:
    """Write columns as Parquet in the form that is read fastest."""
    # Columns that may be null take twice as long to read: 84 against 38 ns a row.
    types = {name: pa.from_numpy_dtype(c.dtype) for name, c in columns.items()}
    schema = pa.schema([pa.field(n, t, nullable=False) for n, t in types.items()])
    pq.write_table(
        pa.table(columns, schema=schema),
        path,
        row_group_size=ROW_GROUP_ROWS,
        compression="none",  # lz4 costs the reader a third of its speed
        use_dictionary=False,
        write_statistics=False,
    )


def merge_counts(
    raw: Path, schema: Schema, world_size: int
) -> tuple[SplitCounts, dict[str, Any]]:
    """Add up the counts of all ranks, and find held-out rows that repeat training rows.

    Args:
        raw: the folder that the ranks wrote into.
        schema: the features, with their table sizes.
        world_size: the number of ranks.

    Returns:
        The counts, and what `count_repeated` returns.
    """
    tally = SplitCounts(schema)
    hashes: dict[str, list[UInt64s]] = {"True": [], "False": []}
    for rank in range(world_size):
        tally.merge(raw / f"tally-{rank:05d}.npz")
        with np.load(raw / f"hashes-{rank:05d}.npz") as saved:
            for name, parts in hashes.items():
                parts.append(saved[name])
    train, held_out = (np.concatenate(hashes[k]) for k in ("True", "False"))
    return tally, count_repeated(train, held_out)
