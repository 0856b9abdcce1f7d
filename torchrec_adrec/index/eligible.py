"""Which ads may be returned: prepared once for a filter, used for many searches."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import faiss
import numpy as np

from torchrec_adrec.arrays import Bools, Float32s, Int64s
from torchrec_adrec.errors import EligibilityError


@dataclass
class EligibleAds:
    """Selects ads of a `ShardedIndex`; `ShardedIndex.eligible` makes it.

    Attributes:
        ids: (n,) of the eligible ads, rising.
        masks: for each shard, which of its vectors belong to them.
        decoded: ids and vectors of them, kept after the first search that compared
            all; only where they are few.
        condition: by which they were chosen, to choose anew after an update; None:
            their ids were given.
    """

    ids: Int64s
    masks: list[Bools]
    decoded: tuple[Int64s, Float32s] | None = field(default=None, repr=False)
    condition: Any = field(default=None, repr=False)

    @property
    def share(self) -> float:
        """The number of eligible ads, as a share of all."""
        return len(self.ids) / max(sum(map(len, self.masks)), 1)

    @cached_property
    def selectors(self) -> list[Any]:
        """A `faiss.IDSelector` for each shard."""
        bits = [np.packbits(mask, bitorder="little") for mask in self.masks]
        # FAISS does not copy the bits; its Python wrapper keeps the array alive.
        selector: Any = faiss.IDSelectorBitmap
        return [selector(part) for part in bits]

    def check(self, ids: Int64s) -> None:
        """Refuse an answer that holds an ad which may not be returned.

        It compares ids, and not the bits that the search was given: a fault in how
        those were made, or in a search that never looked at them, must not get by.

        Args:
            ids: of the answer, of any shape.

        Raises:
            EligibilityError: names the ad.
        """
        if not ids.size:
            return
        places = np.searchsorted(self.ids, ids).clip(max=max(len(self.ids) - 1, 0))
        wrong = self.ids[places] != ids if len(self.ids) else np.ones_like(ids, bool)
        if wrong.any():
            raise EligibilityError(
                f"the index returned ad {ids[wrong][0]}, which is not among the"
                f" {len(self.ids)} eligible ones; nothing was returned"
            )
