"""What `prepare` makes of the whole log: splits by user, histories, drawn negatives.

It comes between the first pass and all others, which then read chunks like those of any
data: with the histories as one more column, and with the negatives as rows of their own
behind their positive.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.catalog import ad_ids
from torchrec_adrec.data.column import Chunk, column_of, values_of
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.drawn_negatives import NOT_DRAWN, Drawer
from torchrec_adrec.data.prepare.future_items import refuse_future_items
from torchrec_adrec.data.prepare.histories import Histories
from torchrec_adrec.data.prepare.log_rows import (
    LogAds,
    LogRows,
    value_ads,
    value_texts,
)
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore
from torchrec_adrec.data.prepare.splits import ByTable, Splits, Splitter, splitter
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import Ranks
from torchrec_adrec.schema import AD_ID, Side

Figures = dict[str, Any]


@dataclass(frozen=True)
class FromLog:
    """The chunks with all that was made of the log.

    Attributes:
        store: the chunks.
        split: gives each row its split.
        negatives: figures of the drawn negatives, for the report; None: none are.
        positives: see `statistics.Folds`.
    """

    store: ChunkStore
    split: Splitter
    negatives: Figures | None = None
    positives: Int64s | None = None


def make_from_log(
    config: DataConfig, data: DataSet, store: ChunkStore, seed: int, ranks: Ranks
) -> FromLog:
    """Split the rows, and make the histories and negatives that the data ask for.

    All ranks call it.

    Args:
        config: the split, and whether leaks are allowed.
        data: which histories to make, and whether negatives are drawn.
        store: the chunks of the first pass.
        seed: draws splits and negatives.
        ranks: each rewrites the chunks of its files.

    Raises:
        ConfigError: a split by user is asked for and the data names none.
        DataError: a list holds what its user did only later.
    """
    split = splitter(config.split, data, store, seed)
    shared = bool(data.histories) or not data.lists_before_log
    shared = shared and any(f.shares_ids_with for f in data.schema.sequences)
    if data.user is None or not (shared or data.negatives):
        return FromLog(store, split)
    rows = LogRows.of(store, data)
    if data.histories:
        store = _rewrite(store, ranks, _with_histories(data, store, rows))
    if not config.allow_leaky_sides:
        refuse_future_items(store, data, rows)
    if data.negatives is None or not data.negatives.count:
        return FromLog(store, split)
    draws = _Draws.of(data, store, rows, split, seed)
    store = _rewrite(store, ranks, draws.apply)
    origin = draws.origin
    return FromLog(store, ByTable(draws.splits[origin]), draws.figures, origin)


def _rewrite(
    store: ChunkStore, ranks: Ranks, change: Callable[[ChunkRef], Chunk]
) -> ChunkStore:
    """Change every chunk, and wait until all ranks have done so."""
    ranks.barrier()  # until now the others may still be reading the chunks
    folder = store.chunks[0].path.parent
    sizes: dict[int, list[int]] = {}
    with Progress("prepare: histories and negatives", unit="rows") as progress:
        for ref in store.of(ranks):
            chunk, partial = change(ref), ref.path.with_suffix(".partial")
            chunk.save(partial)
            partial.replace(ref.path)
            sizes.setdefault(ref.file, []).append(chunk.num_rows)
            progress.advance(chunk.num_rows)
    for file, rows in sizes.items():
        record = folder / f"{file:05d}.json"
        changed = json.loads(record.read_text()) | {"rows": rows}
        record.write_text(json.dumps(changed))
    ranks.barrier()
    return ChunkStore.open(folder)


def _with_histories(
    data: DataSet, store: ChunkStore, rows: LogRows
) -> Callable[[ChunkRef], Chunk]:
    """Return what adds the histories to a chunk."""
    histories = {}
    for feature in data.schema.sequences:
        if feature.source in data.histories:
            source = data.histories[feature.source]
            ads = value_ads(store, source)
            values = value_texts(store, source, ads)
            histories[feature.source] = Histories.of(
                rows, ads, values, feature.max_length
            )

    def add(ref: ChunkRef) -> Chunk:
        chunk = ref.load()
        part = slice(ref.row, ref.row + chunk.num_rows)
        columns = dict(chunk.columns)
        for name, history in histories.items():
            columns[name] = history.column(part)
        return replace(chunk, columns=columns)

    return add


@dataclass(frozen=True)
class _Draws:
    """The negatives of all rows, and the values of their ads.

    Attributes:
        data: what the columns mean.
        donors: (N, K) rows whose ads are the negatives of each row, or `NOT_DRAWN`.
        splits: (N,) of each positive, and so of its negatives.
        ads: every combination of the ad's raw values.
        combination: (N,) position in `ads` of each row's ad.
    """

    data: DataSet
    donors: Int64s
    splits: Splits
    ads: pl.DataFrame
    combination: Int64s

    @classmethod
    def of(
        cls,
        data: DataSet,
        store: ChunkStore,
        rows: LogRows,
        split: Splitter,
        seed: int,
    ) -> "_Draws":
        """Draw the negatives of all rows."""
        assert data.negatives is not None, "asked for"
        splits = np.concatenate([split.assign(r.load(), r) for r in store.chunks])
        named = LogAds.of(store, lambda chunk: ad_ids(chunk.columns, data.ad_key))
        donors = Drawer.of(rows, named, splits, data.negatives, seed).draw()
        sources = data.schema.sources_of(Side.AD)
        whole = LogAds.of(store, lambda chunk: ad_ids(chunk.columns, sources))
        # `whole.keys` rise, as the ads do here: a code is the position in both.
        parts = [_combinations(ref.load(), sources) for ref in store.chunks]
        ads = pl.concat(parts).unique(AD_ID).sort(AD_ID)
        return cls(data, donors, splits, ads, whole.codes)

    @property
    def figures(self) -> Figures:
        """What the report says of them."""
        assert self.data.negatives is not None, "asked for"
        drawn = (self.donors != NOT_DRAWN).sum(axis=1)
        return {
            "per_positive": self.data.negatives.count,
            "by": self.data.negatives.by,
            "positives": len(drawn),
            "drawn": int(drawn.sum()),
            "positives_with_fewer": int((drawn < self.donors.shape[1]).sum()),
        }

    @property
    def origin(self) -> Int64s:
        """The number of the positive of each row, itself one or a negative of it."""
        rows = 1 + (self.donors != NOT_DRAWN).sum(axis=1)
        return np.repeat(np.arange(len(rows)), rows)

    def apply(self, ref: ChunkRef) -> Chunk:
        """Put the negatives of each row behind it."""
        chunk = ref.load()
        rows = slice(ref.row, ref.row + chunk.num_rows)
        # The first column is the row itself, so that one mask orders all of them.
        positive = np.arange(chunk.num_rows)[:, None] + ref.row
        donors = np.concatenate([positive, self.donors[rows]], axis=1)
        is_drawn = donors != NOT_DRAWN
        origin = np.nonzero(is_drawn)[0]
        is_negative = np.nonzero(is_drawn)[1] > 0
        combination = self.combination[donors[is_drawn]]
        columns = {name: c.rows(origin) for name, c in chunk.columns.items()}
        for name in self.data.schema.sources_of(Side.AD):
            columns[name] = column_of(self.ads[name].gather(combination))
        labels = {name: values[origin] for name, values in chunk.labels.items()}
        click, *others = labels
        labels[click][is_negative] = 0
        for name in others:  # nobody saw what would have come of it
            labels[name][is_negative] = np.nan
        time = None if chunk.time is None else chunk.time[origin]
        return Chunk(columns, labels, time)


def _combinations(chunk: Chunk, sources: tuple[str, ...]) -> pl.DataFrame:
    """Return the raw values of every ad of a chunk, once."""
    values = {name: values_of(chunk.columns[name]) for name in sources}
    ids = pl.Series(ad_ids(chunk.columns, sources))
    return pl.DataFrame({AD_ID: ids} | values).unique(AD_ID)
