"""The counts of each split, taken while its rows are written.

They hold, per split and feature, the rows and clicks of every id. Everything that the
report says about a column follows from these counts: its missing and unknown shares,
its drift, and how well the column alone predicts the click.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.data.keys import splitmix
from torchrec_adrec.data.prepare.encoder import PAD
from torchrec_adrec.data.prepare.splits import SPLITS
from torchrec_adrec.data.prepare.vocabulary import MISSING
from torchrec_adrec.schema import Schema

BINS = 64  # for a number that has no bucketed id
SPREAD = 5.0  # standard deviations that the bins cover on each side
PERIODS = 60  # points of the label rates over time
EXPONENTS, LOWEST = 278, 149  # float32 has exponents from -149 to 128

Array = NDArray[Any]


def bins(numbers: Float32s) -> Int64s:
    """Return the bin of each standardised number; the outer bins have no end."""
    scaled = (numbers.astype(np.float64) + SPREAD) * (BINS / (2 * SPREAD))
    return scaled.clip(0, BINS - 1).astype(np.int64)


def exact_sums(values: Array, groups: Array, count: int) -> Array:
    """Sum float32 values by group so that the order of adding does not matter.

    A plain sum of floats depends on that order, and so on the number of ranks; the
    report would then not have the same bytes. Sums of whole numbers are exact.

    Args:
        values: (B,) float32.
        groups: (B,) the group of each value, below `count`.
        count: the number of groups.

    Returns:
        (count, EXPONENTS) whole numbers below 2^53: for each group and exponent the sum
        of the mantissas. Such arrays can be added up; `total` turns them into numbers.
    """
    mantissa, exponent = np.frexp(values.astype(np.float32))
    cells = groups * EXPONENTS + (exponent + LOWEST)
    whole = mantissa.astype(np.float64) * 2**24
    return np.bincount(cells, weights=whole, minlength=count * EXPONENTS).reshape(
        count, EXPONENTS
    )


def total(sums: Array) -> list[float]:
    """Return the number behind each row of `exact_sums`, one per group."""
    powers = np.arange(EXPONENTS) - LOWEST - 24
    return [math.fsum(np.ldexp(row, powers)) for row in sums]


@dataclass
class SplitCounts:
    """The counts of one rank or of all ranks, each under a name.

    rows:SPLIT:FEATURE, clicks:SPLIT:FEATURE    (num_embeddings,) by id, over the rows
                                                whose click was observed
    observed:SPLIT:LABEL, labels:SPLIT:LABEL    rows with the label, and its sum
    repaired:FEATURE                            rows that `data.bounds` repaired
    period_rows:LABEL, period_labels:LABEL      (PERIODS,) the same over time
    size:SPLIT                                  rows, and the sum of their hashes

    A sequence has one count more, before all others: its rows without any item. The
    item that is counted is the oldest one that the model sees. A number without a
    bucketed id has `BINS + 1` counts: missing, then its bins. A vector has two: missing
    and present.

    Attributes:
        schema: the features, with their table sizes.
        counts: the counts by name.
    """

    schema: Schema
    counts: dict[str, Array] = field(default_factory=dict)

    def add(
        self,
        split: int,
        columns: dict[str, Array],
        hashes: Array,
        missing: dict[str, Array],
    ) -> None:
        """Count some rows of one split.

        Args:
            split: position in `SPLITS`.
            columns: the encoded columns and the labels.
            hashes: (B,) uint64, one per row (see `row_hashes`).
            missing: (B,) for each number without a bucketed id: where it is missing.
        """
        name = SPLITS[split]
        # A sum does not depend on the order of the rows, so neither does the split's
        # hash. Unlike with XOR, two equal rows do not cancel each other.
        mixed = splitmix(hashes).sum(dtype=np.uint64)
        self._add(f"size:{name}", np.array([len(hashes), mixed], dtype=np.uint64))
        for label in self.schema.label_names:
            values = columns[label][~np.isnan(columns[label])]
            one_group = np.zeros(len(values), dtype=np.int64)
            self._add(f"observed:{name}:{label}", np.array([len(values)]))
            self._add(f"labels:{name}:{label}", exact_sums(values, one_group, 1))
        click = columns[self.schema.labels[0].name]
        observed = ~np.isnan(click)
        clicked = click[observed] == 1
        for feature, ids, size in self._ids(columns, missing):
            if not observed.all():
                ids = ids[observed]
            # One pass counts both, the rows with a click in the second half.
            both = np.bincount(ids + clicked * np.int32(size), minlength=2 * size)
            self._add(f"rows:{name}:{feature}", both[:size] + both[size:])
            self._add(f"clicks:{name}:{feature}", both[size:])

    def _ids(
        self, columns: dict[str, Array], missing: dict[str, Array]
    ) -> list[tuple[str, Array, int]]:
        """Return the name, the ids (B,) and the number of ids of each feature."""
        features = [
            (f.name, columns[f.name], f.num_embeddings) for f in self.schema.sparse
        ]
        features += [
            (f.name, columns[f.columns[0]] - PAD, f.num_embeddings - PAD)
            for f in self.schema.sequences
        ]
        features += [
            (
                f.name,
                np.where(missing[f.name], MISSING, bins(columns[f.name]) + 1),
                BINS + 1,
            )
            for f in self.schema.dense_alone
        ]
        features += [
            (f.name, np.minimum(columns[f.name], 1), 2) for f in self.schema.vectors
        ]
        return features

    def add_period(self, label: str, values: Array, periods: Array) -> None:
        """Count a label over time.

        Args:
            label: its name.
            values: (B,) NaN where the label was not observed.
            periods: (B,) the period of each row, from 0 to PERIODS - 1.
        """
        observed = ~np.isnan(values)
        rows = np.bincount(periods[observed], minlength=PERIODS)
        self._add(f"period_rows:{label}", rows)
        sums = exact_sums(values[observed], periods[observed], PERIODS)
        self._add(f"period_labels:{label}", sums)

    def add_repaired(self, rows: dict[str, int]) -> None:
        """Count the rows that `data.bounds` repaired, by feature."""
        for feature, count in rows.items():
            self._add(f"repaired:{feature}", np.array([count]))

    def repaired(self) -> dict[str, int]:
        """Return the number of rows that `data.bounds` repaired, by feature."""
        return {
            name.removeprefix("repaired:"): int(count[0])
            for name, count in self.counts.items()
            if name.startswith("repaired:")
        }

    def _add(self, name: str, values: Array) -> None:
        before = self.counts.get(name)
        self.counts[name] = values if before is None else before + values

    def join(self, other: "SplitCounts") -> None:
        """Add the counts of other rows."""
        for name, values in other.counts.items():
            self._add(name, values)

    def save(self, path: Path) -> None:
        """Write this rank's counts."""
        with path.open("wb") as file:
            np.savez(file, **self.counts)  # type: ignore[arg-type]

    def merge(self, path: Path) -> None:
        """Add the counts that a rank wrote."""
        with np.load(path) as counts:
            for name in counts.files:
                self._add(name, counts[name])

    def label(self, split: str, label: str) -> tuple[int, float]:
        """Return the rows of a split in which a label was observed, and its mean."""
        rows = int(self.counts.get(f"observed:{split}:{label}", [0])[0])
        sums = self.counts.get(f"labels:{split}:{label}")
        return rows, total(sums)[0] / rows if sums is not None and rows else 0.0

    def sizes(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {s: int(self.counts.get(f"size:{s}", [0])[0]) for s in SPLITS}
