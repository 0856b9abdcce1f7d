"""Numbers: fitted transforms that are finite for every finite value, and buckets.

All work on distinct values (`data.column`), so a fit is exact and costs little.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Float32s, Float64s, Int64s
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import DenseFeature, SparseFeature

QUANTILES = 64
CONSTANT = 1e-9  # a deviation below this share of the mean is rounding


def signed_log(values: Float64s) -> Float64s:
    """sign(x) * log(1 + |x|): Criteo's I2 goes down to -2, where a plain log is NaN."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def log_square(values: Float64s) -> Int64s:
    """floor(log(x)^2) + 2 above 2, floor(x) below: 3 and 4 share a bucket, 2 does not.

    Source: the winners of the Kaggle challenge (https://github.com/ycjuan/kaggle-2014-criteo),
    who set the small values apart by a prefix.
    """
    # Limits, so that every float has a bucket: far outside anything that is counted.
    x = np.nan_to_num(values).clip(-1e9, 1e300)
    coarse = np.floor(np.log(np.maximum(x, 1)) ** 2) + 2
    return np.asarray(np.where(x > 2, coarse, np.floor(x)), dtype=np.int64)


class _Fitted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str


class Transform(_Fitted):
    """One dense feature: maybe signed_log, then minus `mean`, over `std`.

    A missing value becomes 0, the mean; that it was missing is in the bucketed id.
    """

    log: bool
    mean: float
    std: float

    @classmethod
    def fit(
        cls, feature: DenseFeature, values: Float64s, counts: Int64s
    ) -> "Transform":
        """Fit on the training rows; a constant column keeps a deviation of 1.

        Args:
            values: (V,) distinct raw values; what is not finite is left out.
            counts: (V,) training rows with each.

        Raises:
            DataError: values so large that their mean or deviation is not finite.
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
        # Of a constant column rounding leaves a deviation of some 1e-16.
        std = square**0.5 if square**0.5 > CONSTANT * max(1.0, abs(mean)) else 1.0
        return cls(name=feature.name, log=log, mean=mean, std=std)

    def apply(self, values: Float64s) -> Float32s:
        """Raw values -> standardised ones; what is not finite stays so."""
        x = signed_log(values) if self.log else values
        with np.errstate(over="ignore"):  # the caller looks at what is not finite
            return ((x - self.mean) / self.std).astype(np.float32)


class Quantiles(_Fitted):
    """Buckets that hold about equally many training rows each.

    Attributes:
        edges: rising; bucket i is edges[i - 1] < x <= edges[i].
    """

    edges: tuple[float, ...]

    @classmethod
    def fit(
        cls, feature: SparseFeature, values: Float64s, counts: Int64s
    ) -> "Quantiles":
        """Cut the training rows into at most `QUANTILES` buckets."""
        order = np.argsort(values)
        share = np.cumsum(counts[order]) / max(counts.sum(), 1)
        at = np.searchsorted(share, np.arange(1, QUANTILES) / QUANTILES)
        if not len(values):
            return cls(name=feature.name, edges=())
        edges: list[float] = np.unique(values[order][at]).tolist()
        return cls(name=feature.name, edges=tuple(edges))

    def bucket(self, values: Float64s) -> Int64s:
        """(V,) -> bucket numbers from 0."""
        return np.searchsorted(np.array(self.edges), values, side="left")
