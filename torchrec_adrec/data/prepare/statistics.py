"""Statistics of values: how often training rows clicked, as numbers that a model reads.

A training row must not see its own label in its own features: a value that occurs in no
other row would give the label away, and the model would learn to believe such numbers.
So the training rows are divided into folds, and each sees the counts of all rows
without those of its own fold. Every other row (validation, test, catalog, request) sees
the counts of all training rows. One fold is drawn for a row, not one for each of its
columns, or a row's label would come back through another column's fold.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Float32s, Float64s, Int64s
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.keys import salt, salted_hash
from torchrec_adrec.data.prepare.numeric import Quantiles
from torchrec_adrec.data.prepare.value_counts import NO_FOLD, ValueCounts
from torchrec_adrec.data.prepare.value_keys import (
    KeyedColumn,
    KeyedColumns,
    Sources,
    ValueKeys,
)
from torchrec_adrec.schema import DenseFeature, Statistic

FOLDER = "statistics"
FITTED = "fitted.json"
FOLDS = "+folds"  # behind the name of a file of counts
LOWEST = 1e-4  # probability; a rate of 0 or 1 would have an infinite logit
MOST_DEVIATIONS = 5.0


@dataclass(frozen=True)
class Folds:
    """Draws the fold of every row by a hash of its number.

    So a fold depends neither on the ranks nor on how rows were cut into chunks.

    Attributes:
        count: the number of folds.
        seed: of the run.
        positives: (N,) of all rows the number of the positive that a drawn negative
            stands behind, which has the same fold. Every user has as many negatives for
            each positive, so a fold with one of them alone would tell which it is.
            None: no negatives are drawn.
    """

    count: int
    seed: int
    positives: Int64s | None = None

    def of(self, first_row: int, train: Bools) -> Int64s:
        """Return the folds of consecutive rows, (B,); `NO_FOLD` outside of training.

        Args:
            first_row: the number of the first row among the good rows of all files.
            train: (B,) which rows are trained on.
        """
        rows = np.arange(first_row, first_row + len(train))
        if self.positives is not None:
            rows = self.positives[first_row : first_row + len(train)]
        hashed = salted_hash(rows, salt(f"fold {self.seed}"))
        folds = (hashed % np.uint64(self.count)).astype(np.int64)
        return np.where(train, folds, NO_FOLD)


def raw_statistic(
    statistic: Statistic, observed: Int64s, positives: Int64s, rate: float
) -> Float64s:
    """Compute a statistic from counts, before it is standardised.

    Args:
        statistic: which one.
        observed: (V,) c, the rows in which the label was observed.
        positives: (V,) s, the positive ones among them.
        rate: p0, the label's rate in all training rows.
    """
    if statistic.strength is None:
        return np.log1p(observed.astype(np.float64))
    smoothed = positives + statistic.strength * rate
    return logit(smoothed / (observed + statistic.strength))


def logit(probability: Float64s) -> Float64s:
    """Return log(p / (1 - p)) of probabilities, clipped so that it stays finite."""
    p = probability.clip(LOWEST, 1 - LOWEST)
    return np.asarray(np.log(p / (1 - p)))


@dataclass(frozen=True)
class Statistics:
    """The fitted statistics of a data set, applied alike in `prepare` and in serving.

    Attributes:
        keys: gives values their keys.
        labels: the binary labels, in the order of the counts' columns.
        rates: (labels,) p0, the rate of each in the training rows.
        counts: by raw column or pair.
        scales: by feature, mean and deviation of the training rows' own values.
        fold_of: only in `prepare`: draws the folds of the training rows.
        keeps_folds: whether the counts of every fold are saved, and the keys of values
            stand in the catalog and in the training rows.
    """

    keys: ValueKeys
    labels: tuple[str, ...]
    rates: tuple[float, ...]
    counts: Mapping[Sources, ValueCounts]
    scales: Mapping[str, tuple[float, float]]
    fold_of: Folds | None = None
    keeps_folds: bool = False
    _tables: dict[Sources, Float32s] = field(default_factory=dict, compare=False)

    def encode(
        self,
        features: tuple[DenseFeature, ...],
        raw: RawColumns,
        folds: Int64s | None = None,
    ) -> dict[str, Float32s]:
        """Encode rows as standardised statistics, (B,) float32 by feature.

        Args:
            features: those to make; features of equal sources stand together.
            raw: the raw columns.
            folds: (B,) of `Folds`, for training rows, which must not see their own
                labels; None for rows that see all counts.
        """
        keyed = self.keys.of(raw, by_sources(features))
        return self.encode_keyed(features, keyed, folds)

    def encode_keyed(
        self,
        features: tuple[DenseFeature, ...],
        keyed: KeyedColumns,
        folds: Int64s | None = None,
    ) -> dict[str, Float32s]:
        """Encode rows of which the keys are known, as `encode` does.

        Args:
            features: those to make.
            keyed: the keys of their columns and pairs.
            folds: (B,) of training rows; None for rows that see all counts.
        """
        encoded: dict[str, Float32s] = {}
        for sources, group in by_sources(features).items():
            column = keyed[sources]
            if folds is None:
                table = self._all_values(sources, group)
                rows = self.counts[sources].positions(column.keys)[column.codes]
            else:
                keys, distinct, rows = _cells(column, folds)
                table = self._values(group, self.counts[sources].of(keys, distinct))
            names = [feature.name for feature in group]
            encoded |= zip(names, table[:, rows], strict=True)
        return encoded

    def _all_values(self, sources: Sources, group: list[DenseFeature]) -> Float32s:
        """Return the values of every known key, and then those of an unseen one.

        Computed once: a request would spend more time on its few logarithms than on
        everything else that is done to encode it.
        """
        if sources not in self._tables:
            totals = self.counts[sources].totals
            unseen = np.zeros((1, totals.shape[1]), dtype=np.int64)
            counts = np.concatenate([totals, unseen])
            self._tables[sources] = self._values(group, counts)
        return self._tables[sources]

    def _values(self, group: list[DenseFeature], counts: Int64s) -> Float32s:
        """Standardise the statistics of counts (V, 2 * labels): (features, V)."""
        values = np.empty((len(group), len(counts)), dtype=np.float32)
        for row, feature in zip(values, group, strict=True):
            mean, deviation = self.scales[feature.name]
            row[:] = (self.raw(feature, counts) - mean) / deviation
        return values.clip(-MOST_DEVIATIONS, MOST_DEVIATIONS)

    def raw(self, feature: DenseFeature, counts: Int64s) -> Float64s:
        """Compute a feature of counts (V, 2 * labels), before it is standardised."""
        assert feature.statistic is not None
        label = self.labels.index(feature.statistic.label)
        observed, positives = counts[:, 2 * label], counts[:, 2 * label + 1]
        rate = self.rates[label]
        return raw_statistic(feature.statistic, observed, positives, rate)

    def save(self, folder: Path) -> None:
        """Write `statistics/*.parquet`, which hold the totals, and `fitted.json`."""
        out = folder / FOLDER
        out.mkdir()
        columns = [f"{n}:{kind}" for n in self.labels for kind in ("observed", "sum")]
        for sources, counts in self.counts.items():
            totals = dict(zip(columns, counts.totals.T, strict=True))
            frame = pl.DataFrame({"key": counts.keys} | totals)
            frame.write_parquet(out / _file(sources))
            if self.keeps_folds:
                counts.fold_frame().write_parquet(out / _file(sources, FOLDS))
        fitted: dict[str, Any] = {
            "labels": dict(zip(self.labels, self.rates, strict=True)),
            "columns": list(self.counts),
            "quantiles": [q.model_dump() for q in self.keys.quantiles.values()],
            "scales": self.scales,
        }
        if self.fold_of is not None and self.keeps_folds:
            fitted["folds"] = self.fold_of.count
        (out / FITTED).write_text(json.dumps(fitted, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, with_folds: bool = False) -> "Statistics | None":
        """Read what `save` wrote; None if the data have no statistics.

        Args:
            folder: of the prepared data.
            with_folds: read the counts of every fold too, where they were kept.

        A lost file cannot be mistaken for data without: `hashes.json` names all files,
        and the schema names the features.
        """
        path = folder / FOLDER / FITTED
        if not path.exists():
            return None
        fitted = json.loads(path.read_text())
        quantiles = [Quantiles.model_validate(q) for q in fitted["quantiles"]]
        counts = {}
        for sources in map(tuple, fitted["columns"]):
            frame = pl.read_parquet(folder / FOLDER / _file(sources))
            totals = frame.drop("key").to_numpy()
            counts[sources] = ValueCounts(frame["key"].to_numpy(), totals)
            if with_folds and "folds" in fitted:
                parts = pl.read_parquet(folder / FOLDER / _file(sources, FOLDS))
                counts[sources] = counts[sources].with_folds(parts, fitted["folds"])
        return cls(
            ValueKeys({q.name: q for q in quantiles}),
            tuple(fitted["labels"]),
            tuple(fitted["labels"].values()),
            counts,
            {name: (mean, std) for name, (mean, std) in fitted["scales"].items()},
            keeps_folds="folds" in fitted,
        )


def by_sources(
    features: tuple[DenseFeature, ...],
) -> dict[Sources, list[DenseFeature]]:
    """Group features by the columns that they are made of."""
    return {
        sources: list(group)
        for sources, group in groupby(features, lambda feature: feature.sources)
    }


def _file(sources: Sources, kind: str = "") -> str:
    return f"{'+'.join(sources)}{kind}.parquet"  # a column's name holds no plus


def _cells(column: KeyedColumn, folds: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Return the distinct keys and folds of some rows, and the position of each row.

    A chunk has far fewer of them than rows, and each is looked up once.
    """
    width = int(folds.max(initial=NO_FOLD)) + 2
    cells, rows = np.unique(column.codes * width + folds + 1, return_inverse=True)
    codes, shifted = np.divmod(cells, width)
    return column.keys[codes], shifted - 1, rows
