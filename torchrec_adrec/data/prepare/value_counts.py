"""How often training rows had each value, in all and in every fold."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools, Int64s

NO_FOLD = -1  # of a row that sees all counts


@dataclass(frozen=True)
class ValueCounts:
    """The counts of one column's values, or of one pair's.

    Attributes:
        keys: (K,) the keys that training saw often enough, in rising order.
        totals: (K, 2 * labels) rows of each key in which a label was observed, and the
            positive ones among them, label after label.
        cells: (E,) position of a key * folds + fold, in rising order; None: only the
            totals were read.
        parts: (E, 2 * labels) the part of `totals` that is of this fold.
        folds: the number of folds.
    """

    keys: Int64s
    totals: Int64s
    cells: Int64s | None = None
    parts: Int64s | None = None
    folds: int = 1

    def fold_frame(self) -> pl.DataFrame:
        """Return the counts of every fold, to be saved beside the totals."""
        assert self.cells is not None and self.parts is not None, "only in prepare"
        columns = {str(i): part for i, part in enumerate(self.parts.T)}
        return pl.DataFrame({"cell": self.cells} | columns)

    def with_folds(self, frame: pl.DataFrame, folds: int) -> "ValueCounts":
        """Add the counts of every fold, as `fold_frame` returned them."""
        cells, parts = frame["cell"].to_numpy(), frame.drop("cell").to_numpy()
        return replace(self, cells=cells, parts=parts, folds=folds)

    def positions(self, value_keys: Int64s) -> Int64s:
        """Return where some keys stand in `totals`, (V,); K for an unseen one."""
        positions, known = _find(self.keys, value_keys)
        return np.where(known, positions, len(self.keys))

    def of(self, value_keys: Int64s, folds: Int64s) -> Int64s:
        """Return the counts of some keys, (V, 2 * labels); 0 of unseen ones.

        Args:
            value_keys: (V,).
            folds: (V,) the fold whose counts are left out, or `NO_FOLD`.
        """
        assert self.cells is not None and self.parts is not None, "read with the folds"
        positions, known = _find(self.keys, value_keys)
        counts = _rows(self.totals, positions, known)
        has_fold = known & (folds != NO_FOLD)
        cells, occurs = _find(self.cells, positions * self.folds + folds)
        return counts - _rows(self.parts, cells, occurs & has_fold)


def _find(ordered: Int64s, values: Int64s) -> tuple[Int64s, Bools]:
    """Return the position of each value, and whether it is there at all."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    positions = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return positions, ordered[positions] == values


def _rows(table: Int64s, positions: Int64s, is_there: Bools) -> Int64s:
    rows = np.zeros((len(positions), table.shape[1]), dtype=np.int64)
    rows[is_there] = table[positions[is_there]]
    return rows
