"""Negatives for data that hold positives only: ads that a user did not take, drawn.

Each positive gets a few, out of the ads that the log had shown by its time, with
their values of that time. An ad that the user took is never drawn: for a training row,
in the training rows; for a validation row, in these and the validation rows; for a test
row, in all. Training would otherwise know the answers of the test, because the ads that
a user takes later would be the ones that are never negative.
"""

from dataclasses import dataclass

import numpy as np

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.data.dataset import Negatives
from torchrec_adrec.data.keys import salt, salted_hash
from torchrec_adrec.data.prepare.log_rows import LogAds, LogRows
from torchrec_adrec.data.prepare.splits import Splits

# Of draws that an ad which the user took is replaced by. If he took four fifths of all
# ads, weighted as they are drawn, one in two million negatives is not found.
ATTEMPTS = 64
NOT_DRAWN = -1


@dataclass(frozen=True)
class Drawer:
    """Draws the negatives of any rows of the log; the same ones in every process.

    Attributes:
        rows: of the log, all of them positives.
        ads: the ad of each row.
        splits: (N,) of each row.
        negatives: how many, and how they are drawn.
        salt: of the seed.
    """

    rows: LogRows
    ads: LogAds
    splits: Splits
    negatives: Negatives
    salt: np.uint64

    @classmethod
    def of(
        cls,
        rows: LogRows,
        ads: LogAds,
        splits: Splits,
        negatives: Negatives,
        seed: int,
    ) -> "Drawer":
        """Make a drawer; see the attributes."""
        return cls(rows, ads, splits, negatives, salt(f"negatives {seed}"))

    def draw(self) -> Int64s:
        """Return, for each row, rows whose ads are its negatives, (N, K).

        `NOT_DRAWN` stands where the user took all ads that were drawn for him.
        """
        count, size = self.negatives.count, len(self.rows.users)
        places = np.arange(size * count)
        row = places // count
        donors = np.full(len(places), NOT_DRAWN)
        donor_of, last = self._by_time()
        pairs, splits = self._first_splits()
        for attempt in range(ATTEMPTS):
            open_ = np.flatnonzero(donors == NOT_DRAWN)
            if not len(open_):
                break
            of_row = row[open_]
            # A hash of the row and the draw: no rank needs to know what others drew.
            share = self._uniform(places[open_] * ATTEMPTS + attempt)
            drawn = donor_of[(share * last[of_row]).astype(np.int64)]
            pair = self._pairs(self.rows.users[of_row], self.ads.codes[drawn])
            place = np.minimum(np.searchsorted(pairs, pair), len(pairs) - 1)
            took = (pairs[place] == pair) & (splits[place] <= self.splits[of_row])
            donors[open_[~took]] = drawn[~took]
        is_drawn = donors != NOT_DRAWN
        # The row that was drawn may show a price which the ad no longer had. With the
        # time of the positive it would also pass for the ad's latest one.
        donors[is_drawn] = self._latest_row(donors[is_drawn], row[is_drawn])
        return donors.reshape(size, count)

    def _by_time(self) -> tuple[Int64s, Int64s]:
        """Return what is drawn from, and how much of it each row may draw from, (N,).

        By popularity these are the rows in the order of time, so an ad is as likely as
        it was taken until then. Uniformly they are the first rows of all ads.
        """
        order = np.argsort(self.rows.times, kind="stable")
        if self.negatives.by == "uniform":
            first = np.unique(self.ads.codes[order], return_index=True)[1]
            order = order[np.sort(first)]
        times = self.rows.times[order]
        return order, np.searchsorted(times, self.rows.times, side="right")

    def _latest_row(self, drawn: Int64s, of_row: Int64s) -> Int64s:
        """Return the last row of each drawn ad until the time of the positive."""
        span = int(self.rows.times.max()) + 1
        moments = self.ads.codes * span + self.rows.times
        order = np.argsort(moments, kind="stable")
        until = self.ads.codes[drawn] * span + self.rows.times[of_row]
        return order[np.searchsorted(moments[order], until, side="right") - 1]

    def _first_splits(self) -> tuple[Int64s, Splits]:
        """Return every pair of a user and an ad, rising, and its first split."""
        pairs = self._pairs(self.rows.users, self.ads.codes)
        order = np.lexsort((self.splits, pairs))
        is_first = np.diff(pairs[order], prepend=-1) > 0
        return pairs[order][is_first], self.splits[order][is_first]

    def _pairs(self, users: Int64s, ads: Int64s) -> Int64s:
        return users * len(self.ads.keys) + ads

    def _uniform(self, numbers: Int64s) -> Float64s:
        """Return a number from 0 to 1, never 1, for each number."""
        hashed = salted_hash(numbers, self.salt)
        return np.asarray((hashed >> np.uint64(11)).astype(np.float64) / 2**53)
