"""Histories made of the log: what a user clicked before the time of a row.

Strictly before: a click at the row's own time is no part of it, whatever the order of
the rows, so neither the row itself nor what happened along with it is.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.column import Column, JaggedColumn
from torchrec_adrec.data.prepare.log_rows import NOBODY, LogAds, LogRows


@dataclass(frozen=True)
class Histories:
    """The histories of all rows of the log.

    Attributes:
        clicks: (C,) codes of the clicked ads, by user and then by time.
        first: (N,) where the history of each row begins in `clicks`.
        end: (N,) where it ends.
        values: (V,) the raw value of each code.
    """

    clicks: Int64s
    first: Int64s
    end: Int64s
    values: pl.Series

    @classmethod
    def of(
        cls, rows: LogRows, ads: LogAds, values: pl.Series, length: int
    ) -> "Histories":
        """Find the history of every row.

        Args:
            rows: users, times and clicks.
            ads: what histories are made of.
            values: (V,) its raw values.
            length: of a history at most; the latest clicks count.
        """
        clicked = np.flatnonzero(
            rows.clicked & (rows.users != NOBODY) & (ads.codes != NOBODY)
        )
        moments = rows.moments
        # Stable: clicks of one time stay in the order of their rows.
        order = clicked[np.argsort(moments[clicked], kind="stable")]
        end = np.searchsorted(moments[order], moments, side="left")
        first_moment = rows.moment(rows.users, np.zeros_like(rows.times))
        first = np.searchsorted(moments[order], first_moment, side="left")
        first = np.maximum(first, end - length)
        first[rows.users == NOBODY] = end[rows.users == NOBODY]
        return cls(ads.codes[order], first, end, values)

    def column(self, rows: slice) -> JaggedColumn:
        """Return the histories of some rows as a raw column, the latest click last."""
        first, lengths = self.first[rows], (self.end - self.first)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        codes = self.clicks[np.repeat(first, lengths) + places]
        known, small = np.unique(codes, return_inverse=True)
        items = Column(small.astype(np.int32), self.values.gather(known))
        return JaggedColumn(items, offsets)
