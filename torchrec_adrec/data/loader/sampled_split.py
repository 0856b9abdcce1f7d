"""A training split of which only some of the rows without a click are read.

A row is kept or not by a hash of its number in the split, so the same rows are read in
every epoch, by every rank, on any number of ranks, and after a resume.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchrec_adrec.arrays import Bools, Columns, Int64s
from torchrec_adrec.data.keys import salt, salted_hash
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema


class RetrievedRows(NamedTuple):
    """Rows that no log holds, in files like those of a split.

    Attributes:
        folder: of the files.
        weight: how much the loss of such a row counts.
    """

    folder: Path
    weight: float


@dataclass(frozen=True)
class SampledSplit(Split):
    """All rows of a split but a share of those whose label is 0.

    The rows that are kept are numbered from 0, and only they are counted.

    Attributes:
        whole: the split with all rows.
        places: the position of each row group in `whole`; a group without kept rows has
            none.
        label: the column that is 0 in the rows of which some are dropped.
        rate: the share of them that is kept.
        salt: mixed into the hash; depends on the seed.
    """

    whole: Split
    places: tuple[int, ...]
    label: str
    rate: float
    salt: np.uint64

    @classmethod
    def of(cls, whole: Split, label: str, rate: float, seed: int) -> "SampledSplit":
        """Draw the rows. This reads the label's column once.

        Args:
            whole: the split with all rows.
            label: a column of it, 0 or NaN or another number.
            rate: the share of the rows of 0 that is kept.
            seed: of the draw.

        Raises:
            DataError: a file is damaged, or no row is left.
        """
        constant = salt(f"negatives {seed}")
        every = range(len(whole.groups))
        counts = [
            int(_kept(whole.firsts[place], columns[label], rate, constant).sum())
            for place, columns in zip(every, whole.read(every, [label]), strict=True)
        ]
        places = tuple(place for place in every if counts[place])
        if not places:
            raise DataError(
                f"ranking.negative_rate = {rate:g} leaves none of the {whole.num_rows}"
                f" training rows, expected some with a {label}; set it higher"
            )
        groups = tuple((*whole.groups[place][:2], counts[place]) for place in places)
        weights = tuple(whole.weights[place] for place in places)
        ends = np.cumsum([rows for *_, rows in groups]).tolist()
        firsts = (0, *ends[:-1])
        return cls(
            *(groups, firsts, ends[-1], weights, whole.types),
            *(whole, places, label, rate, constant),
        )

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> Iterator[Columns]:
        """See `Split.read`; the rows that are not kept are left out."""
        places = [self.places[group] for group in groups]
        names = list(dict.fromkeys((*columns, self.label)))
        for place, values in zip(places, self.whole.read(places, names), strict=True):
            kept = self._kept(place, values)
            yield {name: values[name][kept] for name in columns}

    def locate(self, row: int) -> str:
        """See `Split.locate`: the place of a kept row in the files."""
        group = int(np.searchsorted(self.firsts, row, side="right")) - 1
        place = self.places[group]
        (values,) = self.whole.read([place], [self.label])
        rows = np.flatnonzero(self._kept(place, values))
        return self.whole.locate(
            self.whole.firsts[place] + int(rows[row - self.firsts[group]])
        )

    def _kept(self, place: int, values: Columns) -> Bools:
        first = self.whole.firsts[place]
        return _kept(first, values[self.label], self.rate, self.salt)


def training_split(
    data: Path,
    schema: Schema,
    rate: float,
    seed: int,
    splits: Sequence[str] = ("train",),
    retrieved: RetrievedRows | None = None,
) -> Split:
    """Open the rows that a model is trained on.

    Args:
        data: a prepared data set.
        schema: of it; its first label is the click.
        rate: the share of the rows without a click that is read; 1: all rows.
        seed: of the draw.
        splits: the splits that are read as one.
        retrieved: further rows, behind those of the splits; None: no others.
    """
    folders, weights = [data / split for split in splits], {}
    if retrieved is not None:
        folders.append(retrieved.folder)
        weights[retrieved.folder] = retrieved.weight
    whole = Split.open(*folders, weights=weights)
    if rate == 1:
        return whole
    return SampledSplit.of(whole, schema.labels[0].name, rate, seed)


def _kept(first: int, labels: NDArray[Any], rate: float, constant: np.uint64) -> Bools:
    """Tell which rows of a group are kept, (B,).

    Args:
        first: the number of the group's first row.
        labels: (B,).
        rate: the share of the rows of 0 that is kept.
        constant: of the hash.
    """
    numbers: Int64s = np.arange(first, first + len(labels), dtype=np.int64)
    # Uniform between 0 and 1. A label that was not observed, NaN, is not 0.
    position = salted_hash(numbers, constant) / 2.0**64
    return np.asarray((labels != 0) | (position < rate))
