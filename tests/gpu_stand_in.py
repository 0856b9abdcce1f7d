"""A stand-in for the GPU half of FAISS: the same indexes of shards, on the CPU."""

from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np


class Workspace:
    """A `StandardGpuResources`."""

    temporary = 0

    def setTempMemory(self, size: int) -> None:  # noqa: N802  (FAISS's name)
        self.temporary = size


class Library:
    """FAISS as its GPU build with some cards, all of whose indexes are on the CPU."""

    __version__ = "1.15.1"
    INDICES_64_BIT = 3
    StandardGpuResources = Workspace

    def __init__(self, cards: int, build: str = "OPTIMIZE GPU ") -> None:
        self.cards, self.build = cards, build
        self.calls: list[SimpleNamespace] = []
        self.lose = 0  # ads on the way to the card
        self.spoil = False  # the scores
        self.swap = False  # the ads of right scores

    def get_num_gpus(self) -> int:
        return self.cards

    def get_compile_options(self) -> str:
        return self.build

    def GpuMultipleClonerOptions(self) -> Any:  # noqa: N802
        return SimpleNamespace(shard=False, use_cuvs="CUVS" in self.build)

    def index_cpu_to_gpu(self, resources: Any, card: int, index: Any) -> Any:
        self.calls.append(SimpleNamespace(card=card, count=index.ntotal))
        return faiss.clone_index(index)

    def index_cpu_to_gpu_multiple_py(
        self, resources: Any, index: Any, options: Any, cards: Any
    ) -> Any:
        assert len({id(one) for one in resources}) == len(resources) == len(cards)
        self.calls.append(SimpleNamespace(options=options, cards=cards, index=index))
        if self.spoil:
            other = faiss.IndexFlatIP(index.d)
            other.add(index.reconstruct_n(0, index.ntotal) * np.float32(1.001))
            return other
        if self.swap:
            other = faiss.IndexFlatIP(index.d)
            other.add(index.reconstruct_n(0, index.ntotal)[::-1].copy())
            return other
        if not options.shard:
            return faiss.clone_index(index)
        return _shards(index, len(cards), self.lose)


def _shards(index: Any, count: int, lose: int) -> Any:
    """What `ToGpuClonerMultiple::clone_Index_to_shards` makes, on the CPU."""
    library: Any = faiss
    flat = isinstance(index, faiss.IndexFlat)
    shards = (
        library.IndexShards(index.d, True, True)
        if flat
        else library.IndexShardsIVF(index.quantizer, index.nlist, True, False)
    )
    parts: list[Any] = []
    for number in range(count):
        if flat:
            part = faiss.IndexFlatIP(index.d)
            first, stop = (n * index.ntotal // count for n in (number, number + 1))
            part.add(index.reconstruct_n(first, stop - first - lose))
        else:
            part = _without_vectors(index)
            index.copy_subset_to(part, 1, count, number)
        parts.append(part)
        shards.addIndex(part)
    if count == 1:
        return parts[0]
    library.add_to_referenced_objects(shards, (parts, index))
    return shards


def _without_vectors(index: Any) -> Any:
    """Lists of their own in place of those in several files, which cannot be cloned."""
    lists = index.invlists
    index.invlists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    index.own_invlists = False
    part: Any = faiss.clone_index(index)
    index.invlists, part.ntotal = lists, 0
    return part
