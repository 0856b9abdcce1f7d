"""An index in shards, searched as one."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.index.kinds import open_kind
from torchrec_adrec.index.kinds.kind import IndexKind, SearchSetting
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.runtime.files import check_files


def set_search_threads(count: int) -> None:
    """Set the number of OpenMP threads of this process's searches."""
    faiss.omp_set_num_threads(count)


@dataclass
class ShardedIndex:
    """Searches shards that hold disjoint ids of one catalog.

    Attributes:
        shards: FAISS indexes.
        kind: which all of them are.
        setting: how thorough a search is; the gate chooses it.
    """

    shards: list[Any]
    kind: IndexKind
    setting: SearchSetting

    @classmethod
    def open(cls, folder: Path, names: Iterable[str], kind: IndexKind) -> Self:
        """Open shards that were just built, to be searched as thoroughly as possible.

        Args:
            folder: holds the shards.
            names: of their files.
            kind: which they were built as.
        """
        shards = [faiss.read_index(str(folder / name)) for name in names]
        return cls(shards, kind, kind.search_settings()[-1])

    @classmethod
    def load(cls, folder: Path, manifest: IndexManifest) -> Self:
        """Open the shards of a published index.

        Raises:
            ManifestError: a shard is damaged, the counts do not add up, or this version
                cannot open the kind.
        """
        check_files(folder, manifest.shards)
        kind = open_kind(manifest.kind, manifest.sizes)
        index = cls.open(folder, manifest.shards, kind)
        if index.count != manifest.count:
            raise ManifestError(
                f"{folder}: the shards hold {index.count} ads, the manifest says"
                f" {manifest.count}; build the index again"
            )
        for shard in index.shards:
            if shard.metric_type != faiss.METRIC_INNER_PRODUCT:
                raise ManifestError(
                    f"{folder}: a shard is searched by another metric than the inner"
                    " product, by which the towers score; run `adrec index` again"
                )
            if shard.d != manifest.embeddings.dim:
                raise ManifestError(
                    f"{folder}: a shard holds vectors of width {shard.d}, the manifest"
                    f" says {manifest.embeddings.dim}; run `adrec index` again"
                )
        index.setting = manifest.search
        return index

    @property
    def count(self) -> int:
        """The number of vectors in all shards."""
        return int(sum(shard.ntotal for shard in self.shards))

    def ids(self) -> Int64s:
        """Return the ids that the shards hold, in no order, (count,)."""
        return np.concatenate([_ids_of(shard) for shard in self.shards])

    def search(self, queries: Float32s, k: int) -> tuple[Int64s, Float32s]:
        """Find the `k` ads of the largest inner product, best first.

        Args:
            queries: (B, D).
            k: at most the number of ads is returned.

        Returns:
            ids and scores, both (B, min(k, count)).
        """
        k = min(k, self.count)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        ids, scores = self._search(queries, k, self.setting)
        # FAISS fills a row with -1 when the lists that it read hold fewer than k ads.
        # An id of -1 must never leave, so such queries are searched again.
        short = np.flatnonzero(ids[:, -1] < 0)
        if len(short):
            thorough = self.kind.search_settings()[-1]
            ids[short], scores[short] = self._search(queries[short], k, thorough)
        assert (ids >= 0).all(), "the most thorough search must fill every row"
        return ids, scores

    def _search(
        self, queries: Float32s, k: int, setting: SearchSetting
    ) -> tuple[Int64s, Float32s]:
        # Given with the call and not set on the shards: requests on other threads
        # search the same shards. FAISS refuses a k of 0, also for an empty shard.
        parameters = self.kind.search_parameters(setting)
        results = [
            shard.search(queries, min(k, max(shard.ntotal, 1)), params=parameters)
            for shard in self.shards
        ]
        scores = np.concatenate([scores for scores, _ in results], axis=1)
        ids = np.concatenate([ids for _, ids in results], axis=1)
        scores[ids < 0] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)


def _ids_of(shard: Any) -> Int64s:
    """Read the ids from the shard's id map or, if it has none, its inverted lists."""
    inverted = faiss.try_extract_index_ivf(shard)
    if inverted is None:
        return np.asarray(faiss.vector_to_array(shard.id_map), dtype=np.int64)
    lists: Any = inverted.invlists
    parts = [np.empty(0, dtype=np.int64)]
    for number in range(inverted.nlist):
        size = lists.list_size(number)
        if size:
            # Copied, because the pointer shows memory that the index owns and frees.
            parts.append(faiss.rev_swig_ptr(lists.get_ids(number), size).copy())
    return np.concatenate(parts)
