"""Dense columns: a fitted transform that is finite for every integer, and buckets."""

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.errors import DataError


def signed_log(column: pl.Expr) -> pl.Expr:
    """sign(x) * log(1 + |x|): Criteo's I2 goes down to -2, where a plain log is NaN."""
    value = column.cast(pl.Float64)
    return value.sign() * (value.abs() + 1).log()


def bucket(column: pl.Expr) -> pl.Expr:
    """floor(log(x)^2) above 2, the value itself below, null where missing.

    Source: the winners of the Kaggle challenge (https://github.com/ycjuan/kaggle-2014-criteo).
    """
    value = column.cast(pl.Float64)
    coarse = (value.clip(lower_bound=1).log() ** 2).floor().cast(pl.Int64)
    return pl.when(column > 2).then(coarse).otherwise(column)


class Standardize(BaseModel):
    """signed_log, then minus the mean, over the deviation of the training rows.

    A missing value becomes 0, the mean; that it was missing is in the bucketed id.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    mean: float
    std: float

    @classmethod
    def fit(cls, name: str, train: pl.LazyFrame) -> "Standardize":
        """Fit on the training rows; a constant column keeps a deviation of 1."""
        value = signed_log(pl.col(name))
        row = train.select(mean=value.mean(), std=value.std()).collect().row(0)
        mean, std = (0.0 if x is None or not math.isfinite(x) else x for x in row)
        return cls(name=name, mean=mean, std=std if std > 0 else 1.0)

    def encode(self, column: pl.Series) -> NDArray[np.float32]:
        """(B,) float32.

        Raises:
            DataError: a value that is not finite afterwards.
        """
        frame = column.alias(self.name).to_frame()
        z = (signed_log(pl.col(self.name)) - self.mean) / self.std
        out = frame.select(z.fill_null(0.0).cast(pl.Float32)).to_series().to_numpy()
        if not np.isfinite(out).all():
            i = int(np.flatnonzero(~np.isfinite(out))[0])
            raise DataError(f"{self.name}: {column[i]!r} became {out[i]} (row {i})")
        return out
