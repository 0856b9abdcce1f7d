"""Transforms and buckets of numbers, fitted on the training rows.

Every finite value stays finite. All functions work on distinct values (`data.column`),
each weighted by its number of rows, so a fit is exact and costs little.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Float32s, Float64s, Int64s
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import DenseFeature

QUANTILES = 64
CONSTANT = 1e-9  # a deviation below this share of the mean is rounding


def signed_log(values: Float64s) -> Float64s:
    """Return sign(x) * log(1 + |x|), which is also defined for negative numbers.

    Criteo's I2 goes down to -2, where a plain logarithm is NaN.
    """
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def log_square(values: Float64s) -> Int64s:
    """Return the bucket floor(log(x)^2) + 2 of values above 2, and floor(x) below.

    So 3 and 4 share a bucket, while 2 and every smaller whole number have their own.

    Source: the winners of the Kaggle challenge (https://github.com/ycjuan/kaggle-2014-criteo),
    who set the small values apart by a prefix.
    """
    # The limits lie far outside of anything that is counted; they only make sure that
    # every float, infinities and NaN too, has a bucket that fits into an integer.
    x = np.nan_to_num(values).clip(-1e9, 1e300)
    coarse = np.floor(np.log(np.maximum(x, 1)) ** 2) + 2
    return np.asarray(np.where(x > 2, coarse, np.floor(x)), dtype=np.int64)


class _Fitted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str


class Transform(_Fitted):
    """The standardisation of one dense feature: (x - mean) / std.

    A missing value becomes 0, which is the mean. Where the feature also has a bucketed
    id, that id tells the model that the value was missing.

    Attributes:
        log: whether `signed_log` is applied first.
        mean: of the training rows.
        std: of the training rows; 1 for a constant column.
    """

    log: bool
    mean: float
    std: float

    @classmethod
    def fit(
        cls, feature: DenseFeature, values: Float64s, counts: Int64s
    ) -> "Transform":
        """Fit on the training rows.

        Args:
            feature: the feature, which names its transform.
            values: (V,) distinct raw values; what is not finite is left out.
            counts: (V,) number of training rows with each value.

        Raises:
            DataError: the mean or the deviation is not finite, as values are too large.
        """
        log = feature.transform != "standard"
        finite = np.isfinite(values)
        x, weight = values[finite], counts[finite]
        x, total = (signed_log(x) if log else x), weight.sum()
        with np.errstate(over="ignore"):
            mean = float((x * weight).sum() / max(total, 1))
            square = float((((x - mean) ** 2) * weight).sum() / max(total - 1, 1))
        if feature.transform == "log":
            mean, square = 0.0, 1.0
        if not np.isfinite([mean, square]).all():
            raise DataError(
                f"{feature.source} goes up to {x.max():g}: its mean or deviation is not"
                " finite; use the transform log_standard, or leave it out"
            )
        # Rounding gives a constant column a deviation of about 1e-16. To divide by it
        # would blow up the first other value that a request brings.
        std = square**0.5
        if std <= CONSTANT * max(1.0, abs(mean)):
            std = 1.0
        return cls(name=feature.name, log=log, mean=mean, std=std)

    def apply(self, values: Float64s) -> Float32s:
        """Standardise raw values, (V,); a value that is not finite stays so."""
        x = signed_log(values) if self.log else values
        with np.errstate(over="ignore"):  # the encoder handles infinities
            return ((x - self.mean) / self.std).astype(np.float32)


class Quantiles(_Fitted):
    """Buckets of one feature that hold about equally many training rows each.

    Attributes:
        edges: upper ends in rising order; bucket i is edges[i - 1] < x <= edges[i].
    """

    edges: tuple[float, ...]

    @classmethod
    def fit(
        cls, name: str, values: Float64s, counts: Int64s, buckets: int = QUANTILES
    ) -> "Quantiles":
        """Cut the training rows into buckets.

        Args:
            name: of the feature or column.
            values: (V,) distinct raw values.
            counts: (V,) number of training rows with each value.
            buckets: the largest number of buckets.
        """
        if not len(values):
            return cls(name=name, edges=())
        order = np.argsort(values)
        shares = np.cumsum(counts[order]) / max(counts.sum(), 1)
        positions = np.searchsorted(shares, np.arange(1, buckets) / buckets)
        # A value that fills several quantiles is an edge of only one bucket.
        edges: list[float] = np.unique(values[order][positions]).tolist()
        return cls(name=name, edges=tuple(edges))

    def bucket(self, values: Float64s) -> Int64s:
        """Return the number of each value's bucket, (V,), from 0."""
        return np.searchsorted(np.array(self.edges), values, side="left")
