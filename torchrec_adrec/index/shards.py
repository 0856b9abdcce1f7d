"""The shards of an index, and what they hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from torchrec_adrec.arrays import Bools, Float32s, Int64s
from torchrec_adrec.index.kinds.kind import IndexKind, SearchSetting
from torchrec_adrec.index.manifest import Layout
from torchrec_adrec.index.pieces import numbers_in

DECODED_AT_ONCE = 65_536  # vectors of width 256 take 67 MB


class SearchedCopy(Protocol):
    """A copy of an index that does some of its searches."""

    def can(self, k: int, setting: SearchSetting) -> bool:
        """Whether it does such a search."""

    def search(
        self, queries: Float32s, k: int, setting: SearchSetting
    ) -> tuple[Float32s, Int64s]:
        """Find scores and numbers, both (B, k), as the index does."""


@dataclass(frozen=True)
class Shard:
    """A FAISS index that numbers its vectors, and the ad of every number.

    Attributes:
        index: of FAISS.
        ids: (n,).
        copy: of the index on GPUs, which is searched in its place where it can be.
    """

    index: Any
    ids: Int64s
    copy: SearchedCopy | None = None

    @property
    def ntotal(self) -> int:
        """The number of vectors, n."""
        return int(self.index.ntotal)


@dataclass
class Shards:
    """Shards that hold disjoint ids of one catalog.

    Attributes:
        shards: one, to which all files are joined, or one a file where the kind cannot
            be joined.
        layout: of the files.
        kind: which all of them are.
    """

    shards: list[Shard]
    layout: Layout
    kind: IndexKind

    @property
    def count(self) -> int:
        """The number of vectors in all shards."""
        return int(sum(shard.ntotal for shard in self.shards))

    def ids(self) -> Int64s:
        """Return the ids that the shards hold, in no order, (count,)."""
        return np.concatenate([shard.ids for shard in self.shards])

    def stored_ids(self) -> Int64s:
        """Return the ids of what is really in the shards, in no order.

        Inverted lists may hold a number twice and another one not at all, which the
        counts do not tell.
        """
        return np.concatenate([s.ids[numbers_in(s.index)] for s in self.shards])

    @cached_property
    def _parameters(self) -> dict[tuple[Any, ...], Any]:
        return {}

    def search_parameters(self, setting: SearchSetting, selector: Any) -> Any:
        """Translate a setting for FAISS, once if there is no filter."""
        if selector is not None:
            return self.kind.search_parameters(setting, selector)
        # FAISS only reads them, and making them takes 14 us.
        key = tuple(sorted(setting.items()))
        if key not in self._parameters:
            self._parameters[key] = self.kind.search_parameters(setting)
        return self._parameters[key]

    @cached_property
    def stores(self) -> list[Any]:
        """The part of each shard that decodes its vectors."""
        return [self.kind.store(shard.index) for shard in self.shards]

    def stored(self, ids: Int64s) -> Float32s:
        """Decode the vectors from which the scores of some ads come, (n, D)."""
        order, indexed = self.by_id
        places = order[np.searchsorted(indexed, ids)]
        dim = self.shards[0].index.d
        vectors = np.empty((len(ids), dim), dtype=np.float32)
        first = 0
        for shard, store in zip(self.shards, self.stores, strict=True):
            inside = (places >= first) & (places < first + shard.ntotal)
            if inside.any():
                vectors[inside] = store.reconstruct_batch(places[inside] - first)
            first += shard.ntotal
        return vectors

    def shard_of_each(self) -> Int64s:
        """Return the number of the shard of each ad by rising id, (count,)."""
        sizes = [shard.ntotal for shard in self.shards]
        return np.repeat(np.arange(len(sizes)), sizes)[self.by_id[0]]

    def split(self, mask: Bools) -> list[Bools]:
        """Split what is said of all vectors, shard after shard, (count,)."""
        return np.split(mask, np.cumsum([shard.ntotal for shard in self.shards])[:-1])

    @cached_property
    def by_id(self) -> tuple[Int64s, Int64s]:
        """The places of all vectors, shard after shard, by rising id; and the ids."""
        ids = self.ids()
        order = np.argsort(ids)
        return order, ids[order]

    def decoded(
        self, masks: Sequence[Bools | None]
    ) -> Iterator[tuple[Int64s, Float32s]]:
        """Decode vectors, ids (n,) and (n, D) of a part.

        Args:
            masks: of each shard, which of its vectors; None: all.
        """
        for shard, store, mask in zip(self.shards, self.stores, masks, strict=True):
            count = shard.ntotal
            numbers = np.arange(count) if mask is None else np.flatnonzero(mask)
            for first in range(0, len(numbers), DECODED_AT_ONCE):
                part = numbers[first : first + DECODED_AT_ONCE]
                yield shard.ids[part], store.reconstruct_batch(part)
