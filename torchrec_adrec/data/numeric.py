"""Dense columns: a fitted transform that is finite for every integer, and buckets."""

import math

import polars as pl
from pydantic import BaseModel, ConfigDict


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

    def expression(self) -> pl.Expr:
        """The raw column -> the standardised one, missing values 0."""
        z = (signed_log(pl.col(self.name)) - self.mean) / self.std
        return z.fill_null(0.0).cast(pl.Float32)
