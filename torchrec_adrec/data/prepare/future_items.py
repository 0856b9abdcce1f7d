"""The check for histories that hold what their user did only later.

A list of a row may hold an ad that the user first clicked in this very row or after
it. In a history that was made here that is a fault of ours. In a list that came with
the data it may also be a click from before the log began. So there it counts only if
the list of the user's row before did not hold the ad: then it came in between these two
rows, in which the log has no click on it.
"""

from dataclasses import dataclass

import numpy as np

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.column import jagged_column
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.prepare.log_rows import (
    NOBODY,
    LogAds,
    LogRows,
    value_ads,
    value_texts,
)
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore, map_chunks
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import SequenceFeature


@dataclass(frozen=True)
class FutureItems:
    """Items of lists that their user clicked no earlier than the row.

    Attributes:
        rows: (K,) numbers among the rows of the log, rising.
        ads: (K,) codes of `LogAds`.
    """

    rows: Int64s
    ads: Int64s

    @classmethod
    def of(
        cls, store: ChunkStore, feature: SequenceFeature, rows: LogRows, ads: LogAds
    ) -> "FutureItems":
        """Look at every item of every list.

        Args:
            store: the chunks.
            feature: a sequence whose lists are in the chunks.
            rows: of the log.
            ads: the values that the sequence shares.
        """
        pairs, first_times = _first_clicks(rows, ads)

        def later(ref: ChunkRef) -> tuple[Int64s, Int64s]:
            row, ad = _items(ref, feature, ads)
            is_known = (ad != NOBODY) & (rows.users[row] != NOBODY)
            row, ad = row[is_known], ad[is_known]
            pair = rows.users[row] * len(ads.keys) + ad
            place = np.minimum(np.searchsorted(pairs, pair), max(len(pairs) - 1, 0))
            is_later = np.zeros(len(row), dtype=np.bool_)
            if len(pairs):
                is_later = (pairs[place] == pair) & (
                    first_times[place] >= rows.times[row]
                )
            return row[is_later], ad[is_later]

        parts = zip(*map_chunks(store.chunks, later), strict=True)
        return cls(*(np.concatenate(part) for part in parts))

    def new_in_their_row(
        self, store: ChunkStore, feature: SequenceFeature, rows: LogRows, ads: LogAds
    ) -> "FutureItems":
        """Return those that the list of the user's row before did not hold.

        Args:
            store, feature, rows, ads: see `of`.
        """
        before = _rows_before(rows)[self.rows]
        size = len(ads.keys)
        asked = np.unique(before * size + self.ads)
        held: list[Int64s] = [np.zeros(0, dtype=np.int64)]
        for ref in store.chunks:
            row, ad = _items(ref, feature, ads)
            pair = (row * size + ad)[ad != NOBODY]
            held.append(np.intersect1d(pair, asked))
        was_held = np.isin(before * size + self.ads, np.concatenate(held))
        is_new = ~was_held & (before != NOBODY)
        return FutureItems(self.rows[is_new], self.ads[is_new])


def refuse_future_items(store: ChunkStore, data: DataSet, rows: LogRows) -> None:
    """Refuse lists that hold what their user did only later.

    Args:
        store: the chunks, with the histories that were made here.
        data: names the ads' columns, and which sequences were made here.
        rows: of the log.

    Raises:
        DataError: names the first row, its file and the item.
    """
    sources = {f.name: f.source for f in data.schema.sparse}
    for feature in data.schema.sequences:
        if feature.shares_ids_with is None:
            continue
        ads = value_ads(store, sources[feature.shares_ids_with])
        items = FutureItems.of(store, feature, rows, ads)
        if feature.source not in data.histories:
            items = items.new_in_their_row(store, feature, rows, ads)
        if len(items.rows):
            source = sources[feature.shares_ids_with]
            value = value_texts(store, source, ads)[int(items.ads[0])]
            where = _place(store, data, int(items.rows[0]))
            raise DataError(
                f"{where}: {feature.name} holds {value!r}, which its user clicked no"
                " earlier than in this row; so do the lists of"
                f" {len(np.unique(items.rows))} rows. A history may hold only what came"
                " strictly before its row: make it anew, have it made"
                f" (`{{of: {feature.shares_ids_with}, length: {feature.max_length}}}`),"
                " or set data.allow_leaky_sides=true"
            )


def _place(store: ChunkStore, data: DataSet, row: int) -> str:
    """Name the file and the row in it of a row of the log."""
    ref = next(ref for ref in reversed(store.chunks) if ref.row <= row)
    number = ref.row_in_file + row - ref.row + 1
    return f"{data.files[ref.file]}, good row {number}"


def _items(
    ref: ChunkRef, feature: SequenceFeature, ads: LogAds
) -> tuple[Int64s, Int64s]:
    """Return the row among all rows, and the code, of each item of a chunk."""
    bags = jagged_column(ref.load().columns, feature.source)
    row = ref.row + np.repeat(np.arange(len(bags.offsets) - 1), np.diff(bags.offsets))
    codes = ads.position(keys(bags.items.values))
    return row, bags.items.spread(codes, NOBODY)


def _first_clicks(rows: LogRows, ads: LogAds) -> tuple[Int64s, Int64s]:
    """Return every pair of a user and a clicked ad, rising, and its first time."""
    clicked = rows.clicked & (rows.users != NOBODY) & (ads.codes != NOBODY)
    pairs = (rows.users * len(ads.keys) + ads.codes)[clicked]
    times = rows.times[clicked]
    order = np.lexsort((times, pairs))
    is_first = np.diff(pairs[order], prepend=-1) > 0
    return pairs[order][is_first], times[order][is_first]


def _rows_before(rows: LogRows) -> Int64s:
    """Return the last row of each row's user at an earlier time, (N,), or `NOBODY`."""
    moments = rows.moments
    order = np.argsort(moments, kind="stable")
    place = np.searchsorted(moments[order], moments, side="left") - 1
    before = order[np.maximum(place, 0)]
    is_same = (place >= 0) & (rows.users[before] == rows.users)
    return np.where(is_same, before, NOBODY)
