"""The switch of the crosses: they stay only if the validation rows agree.

Training rows choose the pairs. But a pair of a user's and an ad's column has few rows
a value, and what it says may not hold later: on Criteo and KuaiRand such pairs were
worth nothing or did harm, in a known world they are most of what there is to know.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.config.data import StatisticsConfig
from torchrec_adrec.data.prepare.pairs import PairGain, Sample

DEVIATIONS = 2  # standard errors that a gain must exceed


class CrossSwitch(BaseModel):
    """What crosses are worth on validation rows, and whether they stay.

    Attributes:
        pairs: as the training rows chose them.
        rows: the number of validation rows.
        gain: the log loss of validation rows without crosses, minus that with them.
        error: the standard error of `gain` over the rows.
    """

    model_config = ConfigDict(frozen=True)

    pairs: tuple[PairGain, ...]
    rows: int
    gain: float
    error: float

    @property
    def is_kept(self) -> bool:
        """Whether the gain is more than noise."""
        return self.gain > DEVIATIONS * self.error


def judge_crosses(
    sample: Sample,
    pairs: list[PairGain],
    crosses: list[PairGain],
    config: StatisticsConfig,
) -> CrossSwitch:
    """Fit an additive logit on training rows, without crosses and with them.

    Args:
        sample: of training and validation rows.
        pairs: chosen within the sides: what crosses add to them is what counts.
        crosses: chosen across the sides.
        config: the folds and the strength of a pair.
    """
    columns = list(sample.codes.values())
    columns += [sample.pair(pair.first, pair.second) for pair in pairs]
    without = _columns(sample, columns, config)
    added = [sample.pair(pair.first, pair.second) for pair in crosses]
    valid = ~sample.train
    rows = int(valid.sum())
    if not crosses or not rows:
        return CrossSwitch(pairs=tuple(crosses), rows=rows, gain=0, error=0)
    both = np.hstack([without, _columns(sample, added, config)])
    gains = _losses(sample, without) - _losses(sample, both)
    return CrossSwitch(
        pairs=tuple(crosses),
        rows=rows,
        gain=float(gains.mean()),
        error=float(gains.std() / np.sqrt(rows)),
    )


def _columns(sample: Sample, codes: list[Int64s], config: StatisticsConfig) -> Float64s:
    """Return the logits of some columns, standardised, (n, columns)."""
    logits = [sample.logits(c, config.pair_strength, config.folds) for c in codes]
    table = np.stack(logits, axis=1)
    train = table[sample.train]
    scale = np.maximum(train.std(axis=0), 1e-6)
    return np.asarray((table - train.mean(axis=0)) / scale)


def _losses(sample: Sample, columns: Float64s) -> Float64s:
    """Return the log loss of each validation row under a fit of the training rows."""
    train = sample.train
    model = LogisticRegression(max_iter=200)
    model.fit(columns[train], sample.clicks[train])
    z = model.decision_function(columns[~train])
    return np.asarray(np.logaddexp(0, z) - sample.clicks[~train] * z)
