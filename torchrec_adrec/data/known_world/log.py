"""The log of a known world: who was shown which ad, when, where and with what result.

    shown ad ~ (ad + 40)^-1 * exp(4 g . v) over the ads that are born; g: the group's
               taste on the first day
    position ~ 1 + Binomial(4, 0.3 + 0.4 ad / ads): popular ads stand higher
    time       evenly spread, then thinned at night

A log is drawn in blocks of 131,072 rows. Each block has random numbers of its own, so
it can be drawn alone and in any order, and a log needs the memory of one block.
"""

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Float64s, Int64s
from torchrec_adrec.data.known_world.law import GROUPS, Shown, Truth, World

BLOCK_ROWS = 131_072  # another number would give other rows for the same seed
POSITIONS = 5
TARGETING = 4.0
AD_SKEW, AD_SHIFT = 1.0, 40  # Zipf-Mandelbrot: (rank + shift)^-skew
USER_SKEW, USER_SHIFT = 0.5, 10
DAYLIGHT = 0.6  # traffic: 1 / (1 + 0.6) of the mean at midnight, 2.5 times it at noon
DEVICE_SHARES = (0.6, 0.3, 0.1)
VALUE_NOISE = 0.5  # standard deviation of log(value) around its expectation
TRUTH_SCHEMA = {
    "user": pl.Int32,
    "ad": pl.Int32,
    "position": pl.Int8,
    "device": pl.Int8,
    "time": pl.Float64,
    "p_click": pl.Float64,
    "p_engagement": pl.Float64,
    "expected_value": pl.Float64,
    "engagement": pl.Float32,
    "value": pl.Float32,
}


class Log:
    """The impressions of a world, in time order.

    Attributes:
        rows: their number.
        blocks: the number of blocks, of which the last may be short.
        visits: (U,) how often each user visits, up to a factor.
        weight: (groups, N) how often each ad that is born is shown to a group's users,
            up to a factor of the group.
        births: (S,) the days on which ads are born, rising.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed = world, seed
        self.rows = world.config.rows
        self.blocks = -(-self.rows // BLOCK_ROWS)
        self.visits = _zipf(world.config.users, USER_SKEW, USER_SHIFT)
        self._visited = np.cumsum(self.visits)
        popularity = _zipf(world.config.ads, AD_SKEW, AD_SHIFT)
        targeting = np.exp(TARGETING * world.centre @ world.ads.vector.T)
        self.weight = popularity * targeting  # (groups, N)
        self.births = np.unique(world.ads.birth)

    def block(self, number: int) -> pl.DataFrame:
        """The rows of a block and their truth, in the columns of `TRUTH_SCHEMA`.

        `time` is in days; `p_engagement` and `expected_value` hold given a click;
        `engagement` (0 or 1) and `value` (money) are drawn, and null without a click.
        """
        first = number * BLOCK_ROWS
        rng = np.random.default_rng([self.seed, 3, number])
        shown = self._shown(first, min(BLOCK_ROWS, self.rows - first), rng)
        truth = self.world.truth(shown)
        columns = shown._asdict() | truth._asdict()
        columns |= self._outcomes(shown.ad, truth, rng)
        return pl.DataFrame(
            {name: columns[name] for name in TRUTH_SCHEMA},
            schema=TRUTH_SCHEMA,
            nan_to_null=True,
        )

    def _shown(self, first: int, rows: int, rng: np.random.Generator) -> Shown:
        """Draw who is shown what. The order of the draws is part of what a seed means.

        Args:
            first: number of the first row in the log.
            rows: the number of rows.
            rng: of the block.
        """
        even = (first + np.arange(rows) + rng.random(rows)) / self.rows
        time = self.world.config.days * even
        # A monotonic bend of the time: rows stay in order and grow rare at night.
        time += DAYLIGHT * np.sin(2 * np.pi * time) / (2 * np.pi)
        visit = rng.uniform(0, self._visited[-1], rows)
        user = np.searchsorted(self._visited, visit, side="right")
        user = user.clip(max=len(self._visited) - 1)
        ad = self._ads(self.world.users.group[user], time, rng)
        lower = lowered(ad, self.world.config.ads)
        position = 1 + rng.binomial(POSITIONS - 1, lower)
        device = rng.choice(len(DEVICE_SHARES), rows, p=DEVICE_SHARES)
        return Shown(user, ad, time, position, device)

    def _ads(self, group: Int64s, time: Float64s, rng: np.random.Generator) -> Int64s:
        """The ad that each row shows, (B,)."""
        # Group g looks up a number from g to g + 1 in one row of cumulative shares of
        # all groups. It stays below g + 1 by more than rounding, because g + 1 itself
        # would be the next group's first ad.
        targets = group + rng.uniform(0, 1 - 1e-12, len(group))
        # Between two births the ads that may be shown stay the same.
        periods = np.searchsorted(self.births, time, side="right") - 1
        places = np.empty(len(group), dtype=np.int64)
        for period in np.unique(periods):
            rows = periods == period
            shares = self._shares(self.births[period])
            places[rows] = np.searchsorted(shares, targets[rows], side="right")
        return np.asarray(places - group * self.world.config.ads)

    def _shares(self, time: float) -> Float64s:
        """Cumulative shares of the ads that are born, group g from g to g + 1, flat."""
        born = self.world.ads.birth <= time
        shares: Float64s = np.cumsum(np.where(born, self.weight, 0.0), axis=1)
        shares /= shares[:, -1:]
        return (shares + np.arange(GROUPS)[:, None]).ravel()

    def _outcomes(
        self, ad: Int64s, truth: Truth, rng: np.random.Generator
    ) -> dict[str, Float64s]:
        """Engagement and value of each row; NaN without a click."""
        clicked: Bools = rng.random(len(ad)) < truth.p_click
        engaged = (rng.random(len(ad)) < truth.p_engagement).astype(np.float64)
        noise = rng.normal(-(VALUE_NOISE**2) / 2, VALUE_NOISE, len(ad))
        value = self.world.expected_value(ad, engaged) * np.exp(noise)
        return {
            "engagement": np.where(clicked, engaged, np.nan),
            "value": np.where(clicked, value, np.nan),
        }


def lowered(ad: Int64s, ads: int) -> Float64s:
    """p of the binomial that moves an ad below the best position, (B,)."""
    return np.asarray(0.3 + 0.4 * ad / ads)


def _zipf(count: int, skew: float, shift: int) -> Float64s:
    return np.asarray((np.arange(count) + float(shift)) ** -skew)
