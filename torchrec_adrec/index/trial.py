"""Searches of some users, with their recall against brute force and their time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torchrec_adrec.arrays import Bools, Float32s, Float64s, Int64s
from torchrec_adrec.index.brute_force import ExactTop
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.kinds.kind import SearchGrid, SearchSetting
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.tune import cheapest, seconds_of_each

TIMED = 40  # single queries that a setting is timed on while the cheapest is chosen
RESAMPLES = 1000


@dataclass(frozen=True)
class Trial:
    """Tries search settings of an index on some users.

    Attributes:
        index: its own setting is not used.
        exported: what it was built from.
        queries: (B, D), held-out users.
        k: K, the number of ads to find; no more than may be returned.
        mask: (N,) by rising id, which ads are eligible; None: all.
        exact: the best ads, where all ranks have searched them; None: searched here.
    """

    index: ShardedIndex
    exported: Exported
    queries: Float32s
    k: int
    mask: Bools | None = None
    exact: ExactTop | None = None

    @cached_property
    def top(self) -> ExactTop:
        """The best ads by brute force."""
        if self.exact is not None:
            return self.exact
        return self.exported.exact_top(self.queries, self.k, self.mask)

    @cached_property
    def eligible(self) -> EligibleAds | None:
        """The filter as the index takes it."""
        if self.mask is None:
            return None
        return self.index.eligible(self.exported.ids[self.mask])

    def recalls(self, setting: SearchSetting) -> Float64s:
        """Return each user's recall, (B,); what is not found is missed."""
        ids, _ = self.index.nearest(self.queries, self.k, setting, self.eligible)
        return self.recalls_of(ids)

    def reaches(
        self, setting: SearchSetting, enough: Callable[[Float64s], bool]
    ) -> bool:
        """Tell whether recalls (B,) are enough, and every user gets `k` ads.

        Who gets fewer is answered by comparing all ads, which no timing of the setting
        tells: of near duplicates, a list of 499 has a recall of .998 at 500.
        """
        ids, _ = self.index.nearest(self.queries, self.k, setting, self.eligible)
        return bool((ids >= 0).all()) and enough(self.recalls_of(ids))

    def recalls_of(self, ids: Int64s) -> Float64s:
        """Return each user's recall of an answer, (B, K) to (B,)."""
        products = self.exported.products(self.queries, ids)
        products[ids < 0] = -np.inf
        return np.asarray(self.exported.hits(self.top, products).mean(axis=1))

    def cheapest(self, grid: SearchGrid, target: float) -> SearchSetting | None:
        """Find the fastest setting whose recall is surely at least the target.

        Surely: the lower end of its 95% interval is, and no user gets fewer than `k`
        ads. None where no setting does.
        """
        return cheapest(
            grid,
            lambda setting: self.reaches(
                setting, lambda recalls: interval_of_mean(recalls)[0] >= target
            ),
            lambda setting: self.milliseconds(setting)["p50"],
        )

    def milliseconds(
        self, setting: SearchSetting | None, count: int = TIMED
    ) -> dict[str, float]:
        """Time single queries on one thread.

        Args:
            setting: None: every eligible ad is compared.
            count: number of queries.
        """

        def search(number: int) -> None:
            row = number % len(self.queries)
            query = self.queries[row : row + 1]
            if setting is None:
                self.index.compare_all(query, self.k, self.eligible)
            else:
                self.index.nearest(query, self.k, setting, self.eligible)

        times = seconds_of_each(search, count) * 1e3
        levels = np.percentile(times, [50, 95, 99])
        return dict(zip(("p50", "p95", "p99"), levels.tolist(), strict=True))


def interval_of_mean(values: Float64s, weights: Float64s | None = None) -> list[float]:
    """Find the 95% interval of a mean of users, by draws with replacement.

    Args:
        values: (B,) sums of each user.
        weights: (B,) what they are divided by; None: 1 each.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
    size = len(values) if weights is None else weights[drawn].sum(axis=1)
    means = values[drawn].sum(axis=1) / np.maximum(size, 1)
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]
