"""Figures of one list of ads: its worth, recall and NDCG.

Shape letters: N ads of the catalog, E that may be shown.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torchrec_adrec.arrays import Bools, Float64s, Int64s
from torchrec_adrec.evaluation.funnel.losses import best_of, sum_of
from torchrec_adrec.evaluation.funnel.names import NDCG, RECALL, VALUE


@dataclass(frozen=True)
class Truth:
    """What is known of a request's ads.

    Attributes:
        worth: (N,).
        relevant: (N,) the ads that a list should hold.
        eligible: (E,) rows that may be shown.
        top: length of a list.
    """

    worth: Float64s
    relevant: Bools
    eligible: Int64s
    top: int

    @cached_property
    def discount(self) -> Float64s:
        """What an ad counts in NDCG at each place, (top,)."""
        return np.asarray(1 / np.log2(2 + np.arange(self.top)))

    @cached_property
    def best_gain(self) -> float:
        """The discounted worth of the oracle's list."""
        best = best_of(self.worth, self.eligible, self.top)
        return float((self.worth[best] * self.discount).sum())

    def figures(self, rows: Int64s) -> dict[str, float]:
        """Judge the first ads of a list, in their order; NDCG has the worth as gain."""
        first = rows[: self.top]
        gain = (self.worth[first] * self.discount[: len(first)]).sum()
        return {
            VALUE: sum_of(first, self.worth),
            RECALL: self.recall(first),
            NDCG: float(gain / self.best_gain),
        }

    def recall(self, rows: Int64s) -> float:
        """Return the share of the relevant ads that a list holds; 1 is possible."""
        most = min(len(rows), int(self.relevant.sum()))
        return float(self.relevant[rows].sum() / most)

    def random_figures(self) -> dict[str, float]:
        """Return the mean of `figures` over all lists that there are, without noise."""
        share = self.relevant[self.eligible].mean()
        most = min(self.top, int(self.relevant.sum()))
        mean = self.worth[self.eligible].mean()
        return {
            VALUE: float(self.top * mean),
            RECALL: float(self.top * share / most),
            NDCG: float(mean * self.discount.sum() / self.best_gain),
        }
