"""An index in shards, searched as one."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.index.kinds import open_kind
from torchrec_adrec.index.kinds.kind import IndexKind, SearchSetting
from torchrec_adrec.index.manifest import IDS, IndexManifest, Layout
from torchrec_adrec.index.pieces import can_be_joined, join, open_mapped
from torchrec_adrec.runtime.files import check_files


def set_search_threads(count: int) -> None:
    """Set the number of OpenMP threads of this process's searches."""
    faiss.omp_set_num_threads(count)


@dataclass(frozen=True)
class Shard:
    """A FAISS index that numbers its vectors, and the ad of every number.

    Attributes:
        index: of FAISS.
        ids: (n,).
    """

    index: Any
    ids: Int64s

    @property
    def ntotal(self) -> int:
        """The number of vectors, n."""
        return int(self.index.ntotal)


@dataclass
class ShardedIndex:
    """Searches shards that hold disjoint ids of one catalog.

    Attributes:
        shards: one, to which all files are joined, or one a file where the kind cannot
            be joined.
        layout: of the files.
        kind: which all of them are.
        setting: how thorough a search is; the gate chooses it.
    """

    shards: list[Shard]
    layout: Layout
    kind: IndexKind
    setting: SearchSetting

    @classmethod
    def open(cls, folder: Path, layout: Layout, kind: IndexKind) -> Self:
        """Open files that were just built, to be searched as thoroughly as possible.

        They are mapped into memory: several processes on a machine share them.

        Args:
            folder: holds the files.
            layout: what each of them holds.
            kind: which they were built as.

        Raises:
            ManifestError: they do not hold what the layout says.
        """
        ids = np.load(folder / IDS, mmap_mode="r")
        paths = [folder / name for name in layout.names]
        if len(paths) == 1 or can_be_joined(open_mapped(paths[0])):
            shards = [Shard(join(paths, layout), ids)]
        else:
            pairs = pairwise(layout.rows)
            shards = [
                Shard(open_mapped(path), ids[first:stop])
                for path, (first, stop) in zip(paths, pairs, strict=True)
            ]
        for shard in shards:
            if shard.ntotal != len(shard.ids):
                raise ManifestError(
                    f"{folder}: the shards hold {shard.ntotal} ads, {IDS} names"
                    f" {len(shard.ids)}; build the index again"
                )
        return cls(shards, layout, kind, kind.search_settings()[-1])

    @classmethod
    def load(cls, folder: Path, manifest: IndexManifest) -> Self:
        """Open the shards of a published index.

        Raises:
            ManifestError: a file is damaged, the counts do not add up, the vectors are
                not the exported ones or not compared by inner product, or this version
                cannot open the kind.
        """
        check_files(folder, manifest.files)
        kind = open_kind(manifest.kind, manifest.sizes)
        index = cls.open(folder, manifest.layout, kind)
        if not index.count == manifest.count == manifest.embeddings.count:
            raise ManifestError(
                f"{folder}: the shards hold {index.count} ads, the manifest says"
                f" {manifest.count}, exported were {manifest.embeddings.count}; build"
                " the index again"
            )
        for shard in index.shards:
            if shard.index.metric_type != faiss.METRIC_INNER_PRODUCT:
                raise ManifestError(
                    f"{folder}: a shard is searched by another metric than the inner"
                    " product, by which the towers score; build the index again"
                )
            if shard.index.d != manifest.embeddings.dim:
                raise ManifestError(
                    f"{folder}: a shard holds vectors of width {shard.index.d},"
                    f" exported were {manifest.embeddings.dim}; build the index again"
                )
        index.setting = manifest.search
        return index

    @property
    def count(self) -> int:
        """The number of vectors in all shards."""
        return int(sum(shard.ntotal for shard in self.shards))

    def ids(self) -> Int64s:
        """Return the ids that the shards hold, in no order, (count,)."""
        return np.concatenate([shard.ids for shard in self.shards])

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
        results = [_nearest(shard, queries, k, parameters) for shard in self.shards]
        scores = np.concatenate([scores for scores, _ in results], axis=1)
        ids = np.concatenate([ids for _, ids in results], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)


def _nearest(
    shard: Shard, queries: Float32s, k: int, parameters: Any
) -> tuple[Float32s, Int64s]:
    """Search one shard; what it does not find is -1, with a score of -inf."""
    scores, numbers = shard.index.search(
        queries, min(k, max(shard.ntotal, 1)), params=parameters
    )
    missing = numbers < 0
    # An empty shard has no first id to look up in the place of what is missing.
    ids = shard.ids[numbers] if shard.ntotal else numbers
    ids[missing], scores[missing] = -1, -np.inf
    return scores, ids
