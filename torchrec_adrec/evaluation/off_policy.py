"""What a policy would have earned, from a log that another policy has written.

With the propensity p of each logged impression (the probability with which the logging
policy showed this ad to this user), the weight w = pi / p of the judged policy pi makes
the log stand for what pi would have shown:

    IPS     mean of w r                        Horvitz and Thompson, JASA 1952
    SNIPS   sum of w r / sum of w              Swaminathan and Joachims, 2015
    DR      mean of E_pi[q] + w (r - q)        Dudik et al., ICML 2011

r is the reward and q what a model predicts of it. The effective number of rows is
(sum of w)^2 / sum of w^2 (Kish, 1965): with few of them an estimate rests on a few
impressions, and its interval is too narrow as well.

Shape letter: B logged rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.errors import DataError
from torchrec_adrec.evaluation.terms import Terms

ESTIMATES = ("ips", "snips", "dr")


@dataclass(frozen=True)
class LoggedRows:
    """Impressions, and what the judged policy thinks of them, (B,) each.

    Attributes:
        reward: that was observed.
        propensity: of the shown ad, by the logging policy, in (0, 1].
        target: of the shown ad, by the judged policy, in [0, 1].
        predicted: the model's reward of the shown ad; any number where `target` is 0.
        expected: the model's reward of an ad that the judged policy would show.

    Raises:
        DataError: a propensity or a target is no probability, or a reward or prediction
            is not finite.
    """

    reward: Float64s
    propensity: Float64s
    target: Float64s
    predicted: Float64s
    expected: Float64s

    def __post_init__(self) -> None:
        p, target = self.propensity, self.target
        _refuse(~((p > 0) & (p <= 1)), p, "propensity", "above 0 and at most 1")
        _refuse(~((target >= 0) & (target <= 1)), target, "target", "from 0 to 1")
        for name in ("reward", "predicted", "expected"):
            values = getattr(self, name)
            _refuse(~np.isfinite(values), values, name, "a finite number")

    @property
    def weight(self) -> Float64s:
        """How many logged impressions each stands for under the judged policy."""
        return self.target / self.propensity

    @property
    def effective(self) -> float:
        """The effective number of rows, from 0 to B."""
        weight = self.weight
        square = float((weight**2).sum())
        return float(weight.sum()) ** 2 / square if square else 0.0

    def terms(self) -> Terms:
        """Return the estimates, the logged reward and the mean weight as terms."""
        weight = self.weight
        rows = {
            "rows": np.ones_like(weight),
            "weight": weight,
            "reward": self.reward,
            "weighted": weight * self.reward,
            "direct": self.expected,
            "residual": weight * (self.reward - self.predicted),
        }
        return Terms(
            rows,
            {
                "ips": lambda s: s["weighted"] / s["rows"],
                "snips": lambda s: s["weighted"] / s["weight"],
                "dr": lambda s: (s["direct"] + s["residual"]) / s["rows"],
                "logged": lambda s: s["reward"] / s["rows"],
                "mean_weight": lambda s: s["weight"] / s["rows"],
            },
        )


def off_policy(
    rows: LoggedRows, clusters: Int64s, least: int, seed: int
) -> dict[str, Any]:
    """Estimate the mean reward of the judged policy.

    Args:
        rows: of the log.
        clusters: (B,) from 0: rows of a user are resampled together.
        least: effective rows, below which there is no estimate.
        seed: of the resamples.

    Returns:
        `effective_rows`; `ips`, `snips`, `dr`, `logged` and `mean_weight`, each with
        its `mean` and `interval`; and `weights_fit`, whether the mean weight may be 1,
        as it is where propensities are right and no ad of the judged policy has none.

    Raises:
        DataError: there are fewer effective rows.
    """
    if not rows.effective >= least:
        raise DataError(
            f"{rows.effective:.0f} effective rows of {len(rows.reward):,} logged ones,"
            f" expected at least {least} (evaluation.min_effective_rows): the served"
            " ads are too different from the logged ones for an estimate; give more"
            " rows (evaluation.logged_rows), or judge by `adrec evaluate funnel`"
        )
    terms = rows.terms()
    intervals = terms.intervals(clusters, seed)
    figures: dict[str, Any] = {
        name: {"mean": mean, "interval": intervals[name]}
        for name, mean in terms.figures().items()
    }
    low, high = intervals["mean_weight"]
    return {
        "effective_rows": rows.effective,
        **figures,
        "weights_fit": bool(low <= 1 <= high),
    }


def _refuse(wrong: Any, values: Float64s, name: str, expected: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{name} of logged row {row} is {values[row]:g}, expected {expected}"
            f" ({int(wrong.sum())} of {len(values)} rows are wrong)"
        )
