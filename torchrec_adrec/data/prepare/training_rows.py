"""The training rows of every chunk, each with its fold, for all that statistics fit."""

from dataclasses import dataclass

import numpy as np

from torchrec_adrec.arrays import Bools, Int64s
from torchrec_adrec.data.column import Chunk
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore
from torchrec_adrec.data.prepare.splits import TRAIN, VALID, Splitter
from torchrec_adrec.data.prepare.statistics import Folds


@dataclass(frozen=True)
class TrainingRows:
    """Loads chunks with the folds of their training rows.

    Attributes:
        store: the chunks.
        split: gives each row its split.
        folds: gives each training row its fold.
    """

    store: ChunkStore
    split: Splitter
    folds: Folds

    def load(self, ref: ChunkRef) -> tuple[Chunk, Bools, Int64s]:
        """Return a chunk, the mask of its training rows, and the fold of each row."""
        chunk = ref.load()
        train = self.split.assign(chunk, ref) == TRAIN
        return chunk, train, self.folds.of(ref.row, train)

    def valid(self, chunk: Chunk, ref: ChunkRef) -> Bools:
        """Return the mask of a chunk's validation rows."""
        return np.asarray(self.split.assign(chunk, ref) == VALID)
