"""What stands in each split: counted while the rows are written.

Per split and feature, the rows and clicks of every id. All that the report says of a
column follows from these counts: missing and unknown shares, drift, and how well the
column alone tells the label.
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

BINS = 64  # of a number that has no id of its own
SPREAD = 5.0  # standard deviations that the bins cover on each side
PERIODS = 60  # points of the label rates over time
EXPONENTS, LOWEST = 278, 149  # of float32: -149 to 128

Array = NDArray[Any]


def bins(numbers: Float32s) -> Int64s:
    """Standardised numbers to `BINS` equal bins; the ends go on for ever."""
    at = (numbers.astype(np.float64) + SPREAD) * (BINS / (2 * SPREAD))
    return at.clip(0, BINS - 1).astype(np.int64)


def exact_sums(values: Array, groups: Array, count: int) -> Array:
    """Sums of float32 values by group that no order of adding changes.

    Returns:
        (count, EXPONENTS) whole numbers below 2^53: per group and exponent the sum of
        the mantissas. Such arrays are added up; `total` makes numbers of them.
    """
    mantissa, exponent = np.frexp(values.astype(np.float32))
    at = groups * EXPONENTS + (exponent + LOWEST)
    whole = mantissa.astype(np.float64) * 2**24
    return np.bincount(at, weights=whole, minlength=count * EXPONENTS).reshape(
        count, EXPONENTS
    )


def total(sums: Array) -> list[float]:
    """The numbers that `exact_sums` stand for, one per group."""
    powers = np.arange(EXPONENTS) - LOWEST - 24
    return [math.fsum(np.ldexp(row, powers)) for row in sums]


@dataclass
class SplitCounts:
    """Counts of one or all ranks, by a name that says what is counted.

    `rows:SPLIT:FEATURE` and `clicks:SPLIT:FEATURE` (num_embeddings,), over the rows
    with an observed click. `observed:SPLIT:LABEL` (1,) and `labels:SPLIT:LABEL`: rows
    with the label, its sum. `repaired:FEATURE` (1,). `period_rows:LABEL` (PERIODS,) and
    `period_labels:LABEL`. `size:SPLIT`: rows, and the sum of their hashes.
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
        """Count rows of one split.

        Args:
            columns: encoded, with the labels.
            hashes: (B,) uint64, one per row (see `row_hashes`).
            missing: (B,) of each number without an id, true where it is missing.
        """
        name = SPLITS[split]
        mixed = splitmix(hashes).sum(dtype=np.uint64)
        self._add(f"size:{name}", np.array([len(hashes), mixed], dtype=np.uint64))
        for label in self.schema.label_names:
            seen = columns[label][~np.isnan(columns[label])]
            one = np.zeros(len(seen), dtype=np.int64)
            self._add(f"observed:{name}:{label}", np.array([len(seen)]))
            self._add(f"labels:{name}:{label}", exact_sums(seen, one, 1))
        click = columns[self.schema.labels[0].name]
        observed = ~np.isnan(click)
        clicked = click[observed] == 1
        for feature, ids, size in self._ids(columns, missing):
            if not observed.all():
                ids = ids[observed]
            # One pass for both: the second half counts the clicks.
            both = np.bincount(ids + clicked * np.int32(size), minlength=2 * size)
            self._add(f"rows:{name}:{feature}", both[:size] + both[size:])
            self._add(f"clicks:{name}:{feature}", both[size:])

    def _ids(
        self, columns: dict[str, Array], missing: dict[str, Array]
    ) -> list[tuple[str, Array, int]]:
        found = [
            (f.name, columns[f.name], f.num_embeddings) for f in self.schema.sparse
        ]
        found += [
            (f.name, columns[f.columns[0]] - PAD, f.num_embeddings - PAD)
            for f in self.schema.sequences
        ]
        found += [
            (
                f.name,
                np.where(missing[f.name], MISSING, bins(columns[f.name]) + 1),
                BINS + 1,
            )
            for f in self.schema.dense_alone
        ]
        return found

    def add_period(self, label: str, values: Array, periods: Array) -> None:
        """Count a label over time: `periods` (B,) from 0 to PERIODS - 1."""
        seen = ~np.isnan(values)
        rows = np.bincount(periods[seen], minlength=PERIODS)
        self._add(f"period_rows:{label}", rows)
        sums = exact_sums(values[seen], periods[seen], PERIODS)
        self._add(f"period_labels:{label}", sums)

    def add_repaired(self, rows: dict[str, int]) -> None:
        """Count the rows that `data.bounds` let pass, by feature."""
        for feature, count in rows.items():
            self._add(f"repaired:{feature}", np.array([count]))

    def repaired(self) -> dict[str, int]:
        """Rows that `data.bounds` let pass, by feature."""
        found = {n.partition(":"): c for n, c in self.counts.items()}
        return {f: int(c[0]) for (kind, _, f), c in found.items() if kind == "repaired"}

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
        """Add what another rank wrote."""
        with np.load(path) as counts:
            for name in counts.files:
                self._add(name, counts[name])

    def label(self, split: str, label: str) -> tuple[int, float]:
        """Rows of a split in which a label was observed, and its mean there."""
        rows = int(self.counts.get(f"observed:{split}:{label}", [0])[0])
        sums = self.counts.get(f"labels:{split}:{label}")
        return rows, total(sums)[0] / rows if sums is not None and rows else 0.0

    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        return {s: int(self.counts.get(f"size:{s}", [0])[0]) for s in SPLITS}
