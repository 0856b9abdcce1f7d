"""The ads of a step that belong to no row: negatives that are drawn in addition."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from torchrec_adrec.arrays import Columns
from torchrec_adrec.data.loader.mined import MinedAds
from torchrec_adrec.data.loader.negatives import UniformNegatives
from torchrec_adrec.data.loader.parquet import StepRows


@dataclass(frozen=True)
class ExtraAds:
    """Draws them: first those that all rows share, then those of each row alone.

    Attributes:
        uniform: None: no ads that rows share.
        mined: None: no ads of single rows.
    """

    uniform: UniformNegatives | None = None
    mined: MinedAds | None = None

    def count(self, rows: int) -> int:
        """The number of ads of a rank beside those of so many rows."""
        shared = 0 if self.uniform is None else self.uniform.local_count
        return shared + (0 if self.mined is None else rows * self.mined.per_click)

    def of_step(self, step: int, rows: StepRows) -> Columns | None:
        """The columns of this rank's ads of a step; None: there are none.

        Args:
            step: counted from 1.
            rows: this rank's.
        """
        parts: list[Columns] = []
        if self.uniform is not None:
            parts.append(self.uniform.of_step(step))
        if self.mined is not None:
            parts.append(self.mined.of_step(step, rows))
        if not parts:
            return None
        return {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}

    def mix(self, log_q: Tensor, rows: int) -> None:
        """Make the log of an ad's share that of all draws which rows share, in place.

        An ad can come with a row or be drawn uniformly, which changes the share of the
        rows' own ads too. Mined ads are drawn for their row and keep theirs.

        Args:
            log_q: (N,) of a batch.
            rows: B.
        """
        if self.uniform is not None:
            shared = log_q[: rows + self.uniform.local_count]
            shared.copy_(self.uniform.mixed(shared))


NO_EXTRA = ExtraAds()
