"""Two models on the same rows: each metric's difference, and its interval by pairs.

Rows and users are drawn together for both models, so what is hard for both cancels out:
the interval of the difference is far narrower than those of the two figures.

Shape letter: B rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.evaluation.terms import (
    Terms,
    add_lists,
    click_terms,
    finite_interval,
)
from torchrec_adrec.evaluation.user_lists import user_lists

LOWER_IS_BETTER = ("log_loss",)


@dataclass(frozen=True)
class Difference:
    """A metric of two models, A and B.

    Attributes:
        metric: its name.
        a, b: the figures.
        low, high: 95% interval of b - a.
    """

    metric: str
    a: float
    b: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Which of them is better, or `open` where the interval holds 0."""
        if not (self.low > 0 or self.high < 0):
            return "open"
        b_is_higher = self.low > 0
        is_b = b_is_higher != self.metric.endswith(LOWER_IS_BETTER)
        return "B" if is_b else "A"


def paired(
    a: Terms, b: Terms, clusters: Int64s, seed: int, names: tuple[str, ...]
) -> list[Difference]:
    """Compare two models' metrics of the same rows.

    Args:
        a: terms of one model.
        b: of the other.
        clusters: (B,) of the rows, from 0: those of a user are drawn together.
        seed: of the draws.
        names: of the metrics.
    """
    figures, draws = [], []
    for terms in (a, b):
        figures.append(terms.figures())
        draws.append(terms.draws(clusters, seed))
    return [
        Difference(
            name,
            figures[0][name],
            figures[1][name],
            *finite_interval(draws[1][name] - draws[0][name]),
        )
        for name in names
    ]


def prediction_terms(
    predicted: Float64s, label: Float64s, user: Int64s | None
) -> Terms:
    """Return the terms of a click's metrics, those of users' lists among them.

    Args:
        predicted: (B,) probabilities.
        label: (B,) 0 or 1.
        user: (B,) keys; None: the data names no user.
    """
    terms = click_terms(predicted, label)
    if user is not None:
        add_lists(terms, user_lists(predicted, label, user), user)
    return terms


def mean_terms(values: Mapping[str, Float64s]) -> Terms:
    """Return the terms of means over rows.

    Args:
        values: metric -> (B,).
    """
    count = len(next(iter(values.values())))
    rows = {"rows": np.ones(count), **values}
    return Terms(rows, {name: partial(_mean, name) for name in values})


def _mean(name: str, sums: Mapping[str, Float64s]) -> Float64s:
    return sums[name] / sums["rows"]
