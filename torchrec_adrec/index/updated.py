"""An index with changes: what it holds and what has changed since, searched as one."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from torchrec_adrec.arrays import Bools, Float32s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.index.answers import best_of
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.index.kinds.exact import Exact
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.index.sharded import ShardedIndex

ABSORBED = "absorbed.npz"  # in the folder of an index


@dataclass(frozen=True)
class Absorbed:
    """The changes that an index was built with.

    Attributes:
        ids: (n,) of the ads that were added or replaced, rising.
        stamps: (n,) of the vectors that the index holds of them.
        removed: (r,) ids that the index does not hold, rising.
    """

    ids: Int64s
    stamps: Int64s
    removed: Int64s

    @classmethod
    def of(cls, changes: Changes) -> Self:
        """Describe changes that are being built in."""
        return cls(changes.ids, changes.stamps, changes.removed)

    @classmethod
    def load(cls, folder: Path, manifest: IndexManifest) -> Self:
        """Read what the folder of an index says, whose files were checked before."""
        if not manifest.changes:
            return cls(*(np.empty(0, dtype=np.int64) for _ in range(3)))
        with np.load(folder / ABSORBED) as saved:
            return cls(saved["ids"], saved["stamps"], saved["removed"])

    def save(self, folder: Path) -> None:
        """Write it into the folder of an index."""
        np.savez(folder / ABSORBED, **vars(self))

    def holds(self, changes: Changes) -> Bools:
        """Tell which changed ads the index holds with the same vector, (M,).

        Raises:
            ManifestError: the changes are older than those that were built in.
        """
        unknown = np.setdiff1d(np.union1d(self.ids, self.removed), changes.touched)
        if len(unknown):
            raise ManifestError(
                f"the index was built with a change of ad {unknown[0]}, and of"
                f" {len(unknown) - 1} others, that are not in the run's changes"
                f" ({changes.name or 'there are none'}): they are older. Put the newest"
                " ones back, or run `adrec index compact`"
            )
        places = np.searchsorted(self.ids, changes.ids).clip(max=len(self.ids) - 1)
        if not len(self.ids):
            return np.zeros(len(changes.ids), dtype=bool)
        same_ad = self.ids[places] == changes.ids
        return np.asarray(same_ad & (self.stamps[places] == changes.stamps))


@dataclass
class EligibleInBoth(EligibleAds):
    """Selects ads of an `UpdatedIndex`, which makes it.

    Attributes:
        index: that made it; another one may hold other ads.
        base: those in the index as it was built.
        segment: those that were added or replaced since.
    """

    index: "UpdatedIndex" = field(kw_only=True, repr=False)
    base: EligibleAds = field(kw_only=True)
    segment: EligibleAds = field(kw_only=True)


class UpdatedIndex:
    """Searches an index and the changes since it was built.

    Added and replaced ads are compared one by one. Removed and replaced ones are masked
    in the index, which is searched as thoroughly as before: few are missing.

    Args:
        base: the index as it was built.
        changes: since the export.
        absorbed: which of them it was built with.

    Raises:
        ManifestError: the changes are older than the index.

    Attributes:
        segment: holds the ads that were added or replaced since, whole.
        live: the ads of the index that are still right; None: all.
    """

    def __init__(
        self, base: ShardedIndex, changes: Changes, absorbed: Absorbed
    ) -> None:
        fresh = ~absorbed.holds(changes)
        self.base, self.changes, self.absorbed = base, changes, absorbed
        self.segment = ShardedIndex.of_vectors(
            Exact(), changes.ids[fresh], changes.vectors[fresh]
        )
        gone = np.union1d(changes.removed, changes.ids[fresh])
        self.live = _all_but(base, gone)

    @property
    def count(self) -> int:
        """The number of ads that may be returned."""
        of_base = self.base.count if self.live is None else len(self.live.ids)
        return of_base + self.segment.count

    @property
    def changed_share(self) -> float:
        """The ads that changed since the index was built, as a share of its ads."""
        masked = 0 if self.live is None else self.base.count - len(self.live.ids)
        return max(masked, self.segment.count) / max(self.base.count, 1)

    @cached_property
    def ids(self) -> Int64s:
        """The ids of all ads that may be returned, rising."""
        of_base = self.base.by_id[1] if self.live is None else self.live.ids
        return np.union1d(of_base, self.segment.ids())

    def eligible(self, ids: Int64s) -> EligibleInBoth:
        """Prepare a filter that lets only some ads through.

        Args:
            ids: of the eligible ads, in any order.

        Raises:
            ManifestError: an id is not in the index, or was removed.
        """
        ids = np.unique(ids)
        in_segment = np.isin(ids, self.segment.ids())
        unknown = np.setdiff1d(ids, self.ids, assume_unique=True)
        if len(unknown):
            raise ManifestError(
                f"ad {unknown[0]} is eligible and not in the index, nor are"
                f" {len(unknown) - 1} others; they were removed, or never exported"
            )
        base = self.base.eligible(ids[~in_segment])
        segment = self.segment.eligible(ids[in_segment])
        return EligibleInBoth(ids, base.masks, index=self, base=base, segment=segment)

    def is_current(self, eligible: EligibleAds) -> bool:
        """Tell whether a filter is up to date: one from before an update is not."""
        return isinstance(eligible, EligibleInBoth) and eligible.index is self

    def _of_this(self, eligible: EligibleAds) -> EligibleInBoth:
        if isinstance(eligible, EligibleInBoth) and eligible.index is self:
            return eligible
        return self.eligible(np.intersect1d(eligible.ids, self.ids))

    def search(
        self, queries: Float32s, k: int, eligible: EligibleAds | None = None
    ) -> tuple[Int64s, Float32s]:
        """Find the `k` ads of the largest inner product, best first.

        Args:
            queries: (B, D).
            k: at most the number of ads, or of eligible ads, is returned.
            eligible: only these are returned, if given. A filter that was prepared
                before an update is prepared anew in every search.

        Returns:
            ids and scores, both (B, min(k, count)).

        Raises:
            EligibilityError: an ad that is not eligible, or was removed, was about to
                be returned.
        """
        if eligible is None:
            return self._search_all(queries, k)
        eligible = self._of_this(eligible)
        parts = [
            self.base.search(queries, k, eligible.base),
            self.segment.search(queries, k, eligible.segment),
        ]
        answer = best_of(parts, k)
        eligible.check(answer[0])
        return answer

    def compare_all(
        self, queries: Float32s, k: int, eligible: EligibleAds | None = None
    ) -> tuple[Int64s, Float32s]:
        """Compare queries with every eligible ad, as `ShardedIndex.compare_all` does.

        Args:
            queries: (B, D).
            k: at most the number of eligible ads.
            eligible: all ads, if not given.
        """
        ads = self.eligible(self.ids) if eligible is None else self._of_this(eligible)
        pairs = ((self.base, ads.base), (self.segment, ads.segment))
        parts = [
            index.compare_all(queries, k, some)
            for index, some in pairs
            if some.ids.size
        ]
        return best_of(parts, k)

    def stored(self, ids: Int64s) -> Float32s:
        """Decode the vectors from which the scores of some ads come, (n, D)."""
        vectors = np.empty((len(ids), self.changes.vectors.shape[1]), dtype=np.float32)
        is_later = np.isin(ids, self.segment.ids())
        vectors[is_later] = self.segment.stored(ids[is_later])
        vectors[~is_later] = self.base.stored(ids[~is_later])
        return vectors

    def _search_all(self, queries: Float32s, k: int) -> tuple[Int64s, Float32s]:
        of_base = self.base.count if self.live is None else len(self.live.ids)
        part = self.base.search_with(
            self.base.setting, queries, min(k, of_base), self.live
        )
        if not self.segment.count:
            return part
        return best_of([part, self.segment.search(queries, k)], k)


def _all_but(index: ShardedIndex, gone: Int64s) -> EligibleAds | None:
    """Select all ads of an index but some, of which it need not hold any."""
    order, indexed = index.by_id
    places = np.flatnonzero(np.isin(indexed, gone, assume_unique=True))
    if not len(places):
        return None
    mask: Bools = np.ones(len(indexed), dtype=bool)
    mask[order[places]] = False
    return EligibleAds(np.delete(indexed, places), index.split(mask))
