"""An index in shards, searched as one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.runtime.files import check_files


def set_search_threads(count: int) -> None:
    """OpenMP threads of this process's searches."""
    faiss.omp_set_num_threads(count)


@dataclass
class ShardedIndex:
    """Searches shards that hold disjoint ids of one catalog.

    Attributes:
        nprobe: inverted lists visited per query.
    """

    shards: list[Any]
    nlist: int
    nprobe: int

    @classmethod
    def load(cls, folder: Path, manifest: IndexManifest) -> "ShardedIndex":
        """Open the shards of a published index.

        Raises:
            ManifestError: a shard is damaged, or the counts do not add up.
        """
        check_files(folder, manifest.shards)
        shards = [faiss.read_index(str(folder / name)) for name in manifest.shards]
        found = sum(shard.ntotal for shard in shards)
        if found != manifest.count:
            raise ManifestError(
                f"{folder}: the shards hold {found} ads, the manifest says"
                f" {manifest.count}; build the index again"
            )
        return cls(shards, manifest.nlist, manifest.nprobe)

    @property
    def count(self) -> int:
        """Vectors in all shards."""
        return int(sum(shard.ntotal for shard in self.shards))

    def ids(self) -> Int64s:
        """The ids that the shards hold, in no order, (count,)."""
        return np.concatenate([_ids_of(shard) for shard in self.shards])

    def search(self, queries: Float32s, k: int) -> tuple[Int64s, Float32s]:
        """The `k` nearest by inner product, best first.

        A query whose visited lists hold fewer than `k` ads is searched again in all
        lists, so every row is full and no -1 ever leaves.

        Args:
            queries: (B, D).
            k: at most the number of ads is returned.

        Returns:
            ids and scores, both (B, min(k, count)).
        """
        k = min(k, self.count)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        ids, scores = self._search(queries, k, self.nprobe)
        short = np.flatnonzero(ids[:, -1] < 0)
        if len(short):
            ids[short], scores[short] = self._search(queries[short], k, self.nlist)
        assert (ids >= 0).all(), "a full search must fill every row"
        return ids, scores

    def _search(
        self, queries: Float32s, k: int, nprobe: int
    ) -> tuple[Int64s, Float32s]:
        found = []
        for shard in self.shards:
            inverted = faiss.try_extract_index_ivf(shard)
            if inverted is not None:
                inverted.nprobe = nprobe
            found.append(shard.search(queries, min(k, max(shard.ntotal, 1))))
        scores = np.concatenate([s for s, _ in found], axis=1)
        ids = np.concatenate([i for _, i in found], axis=1)
        scores[ids < 0] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)


def _ids_of(shard: Any) -> Int64s:
    inverted = faiss.try_extract_index_ivf(shard)
    if inverted is None:
        return np.asarray(faiss.vector_to_array(shard.id_map), dtype=np.int64)
    lists: Any = inverted.invlists
    parts = [np.empty(0, dtype=np.int64)]
    for number in range(inverted.nlist):
        size = lists.list_size(number)
        if size:
            parts.append(faiss.rev_swig_ptr(lists.get_ids(number), size).copy())
    return np.concatenate(parts)
