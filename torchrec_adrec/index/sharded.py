"""An index in shards, searched as one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import faiss
import numpy as np

from torchrec_adrec.arrays import Bools, Float32s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.index.answers import best_of, nothing
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.index.kinds import open_kind
from torchrec_adrec.index.kinds.kind import IndexKind, SearchSetting, most_thorough
from torchrec_adrec.index.manifest import IDS, FilteredSearch, IndexManifest, Layout
from torchrec_adrec.index.pieces import can_be_joined, join, open_mapped
from torchrec_adrec.index.shards import Shard, Shards
from torchrec_adrec.runtime.files import check_files

KEPT = 65_536  # decoded vectors of a filter's ads that are kept for its next search


def set_search_threads(count: int) -> None:
    """Set the number of OpenMP threads of this process's searches."""
    faiss.omp_set_num_threads(count)


@dataclass
class ShardedIndex(Shards):
    """Searches shards as one index.

    Attributes:
        setting: how thorough a search is; the gate chooses it.
        filtered: settings where only a share of the ads is eligible, from the largest
            share down. Below the last one every eligible ad is compared.
    """

    setting: SearchSetting
    filtered: Sequence[FilteredSearch] = ()

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
        return cls(shards, layout, kind, most_thorough(kind))

    @classmethod
    def load(cls, folder: Path, manifest: IndexManifest) -> Self:
        """Open the shards of a published index.

        Raises:
            ManifestError: a file is damaged, the counts do not add up, the vectors are
                not the exported ones or not compared by inner product, or this version
                cannot open the kind.
        """
        check_files(folder, manifest.files)
        kind = open_kind(manifest.kind, manifest.build)
        index = cls.open(folder, manifest.layout, kind)
        exported = manifest.count if manifest.changes else manifest.embeddings.count
        if not index.count == manifest.count == exported:
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
        index.setting, index.filtered = manifest.search, manifest.gate.filtered
        return index

    @classmethod
    def of_vectors(cls, kind: IndexKind, ids: Int64s, vectors: Float32s) -> Self:
        """Build an index in memory, to be measured and thrown away.

        Args:
            kind: with its build parameters.
            ids, vectors: (N,) rising, (N, D).
        """
        size = min(len(ids), kind.training_rows)
        rows = np.random.default_rng(0).choice(len(ids), size, replace=False)
        index = kind.create(vectors[np.sort(rows)], 0)
        index.add(vectors)
        layout = Layout(rows=(0, len(ids)))
        return cls([Shard(index, ids)], layout, kind, most_thorough(kind))

    def eligible(self, ids: Int64s) -> EligibleAds:
        """Prepare a filter that lets only some ads through.

        Args:
            ids: of the eligible ads, in any order.

        Raises:
            ManifestError: an id is not in the index.
        """
        ids = np.unique(ids)
        order, indexed = self.by_id
        places = np.searchsorted(indexed, ids).clip(max=len(indexed) - 1)
        unknown = indexed[places] != ids
        if unknown.any():
            raise ManifestError(
                f"ad {ids[unknown][0]} is eligible and not in the index, nor are"
                f" {unknown.sum() - 1} others; export and index again"
            )
        mask: Bools = np.zeros(len(indexed), dtype=bool)
        mask[order[places]] = True
        return EligibleAds(ids, self.split(mask))

    def is_current(self, eligible: EligibleAds) -> bool:
        """Tell whether a filter is up to date: this index alone has no updates."""
        return True

    def search(
        self, queries: Float32s, k: int, eligible: EligibleAds | None = None
    ) -> tuple[Int64s, Float32s]:
        """Find the `k` ads of the largest inner product, best first.

        Args:
            queries: (B, D).
            k: at most the number of ads, or of eligible ads, is returned.
            eligible: only these are returned, if given.

        Returns:
            ids and scores, both (B, min(k, count)).

        Raises:
            EligibilityError: an ad that is not eligible was about to be returned.
        """
        k = min(k, self.count if eligible is None else len(eligible.ids))
        return self.search_with(self.setting_for(eligible), queries, k, eligible)

    def search_with(
        self,
        setting: SearchSetting | None,
        queries: Float32s,
        k: int,
        eligible: EligibleAds | None = None,
    ) -> tuple[Int64s, Float32s]:
        """Search as `search` does, as thoroughly as is said.

        Args:
            setting: of the kind; None: every eligible ad is compared.
            queries: (B, D).
            k: at most the number of ads, or of eligible ads.
            eligible: only these are returned, if given.

        Raises:
            EligibilityError: as of `search`.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if k == 0:
            return nothing(len(queries))
        if setting is None:
            ids, scores = self.compare_all(queries, k, eligible)
        else:
            ids, scores = self.nearest(queries, k, setting, eligible)
            # FAISS fills a row with -1 when what it read holds fewer than k ads. An id
            # of -1 must never leave, so such queries are compared with every ad.
            short = np.flatnonzero((ids < 0).any(axis=1))
            if len(short):
                full = self.compare_all(queries[short], k, eligible)
                ids[short], scores[short] = full
        if eligible is not None:
            eligible.check(ids)
        return ids, scores

    def setting_for(self, eligible: EligibleAds | None) -> SearchSetting | None:
        """Return how thoroughly to search; None means that all are compared.

        The fewer ads are eligible, the more lists must be read to see as many of them.
        """
        if eligible is None or eligible.share == 1:
            return self.setting
        measured = [level for level in self.filtered if level.share <= eligible.share]
        return measured[0].search if measured else None

    def nearest(
        self,
        queries: Float32s,
        k: int,
        setting: SearchSetting,
        eligible: EligibleAds | None = None,
    ) -> tuple[Int64s, Float32s]:
        """Search with one setting; what it does not find is -1, with a score of -inf.

        Args:
            queries: (B, D).
            k: at most the number of ads.
            setting: of the kind.
            eligible: only these are found, if given.
        """
        answers = [
            self._nearest_in(number, queries, k, setting, eligible)
            for number in range(len(self.shards))
        ]
        if len(answers) == 1:
            return answers[0]
        return best_of(answers, k)

    def _nearest_in(
        self,
        number: int,
        queries: Float32s,
        k: int,
        setting: SearchSetting,
        eligible: EligibleAds | None,
    ) -> tuple[Int64s, Float32s]:
        # Parameters are given with the call and not set on the shards: requests on
        # other threads search the same shards.
        selector = None
        if eligible is not None and eligible.share < 1:
            selector = eligible.selectors[number]
        shard = self.shards[number]
        k = min(k, max(shard.ntotal, 1))  # FAISS refuses 0, also for an empty shard
        if shard.copy is not None and selector is None and shard.copy.can(k, setting):
            scores, numbers = shard.copy.search(queries, k, setting)
        else:
            parameters = self.search_parameters(setting, selector)
            scores, numbers = shard.index.search(queries, k, params=parameters)
        missing = numbers < 0
        # An empty shard has no first id to look up in the place of what is missing.
        ids = shard.ids[numbers] if shard.ntotal else numbers
        ids[missing], scores[missing] = -1, -np.inf
        return ids, scores

    def compare_all(
        self, queries: Float32s, k: int, eligible: EligibleAds | None = None
    ) -> tuple[Int64s, Float32s]:
        """Compare queries with the stored vector of every eligible ad.

        Args:
            queries: (B, D).
            k: at most the number of eligible ads.
            eligible: all ads, if not given.

        Returns:
            ids and scores, (B, k), best first.
        """
        best = nothing(len(queries))
        for ids, vectors in self._vectors(eligible):
            scores = queries @ vectors.T
            rows = np.broadcast_to(ids, scores.shape)
            best = best_of([best, (rows, scores)], k)
        return best

    def _vectors(
        self, eligible: EligibleAds | None
    ) -> Iterator[tuple[Int64s, Float32s]]:
        """Decode the eligible ads, or all: ids (n,) and vectors (n, D) of a part."""
        if eligible is None:
            yield from self.decoded([None] * len(self.shards))
        elif len(eligible.ids) > KEPT:
            yield from self.decoded(eligible.masks)
        else:
            if eligible.decoded is None:
                parts = list(self.decoded(eligible.masks))
                ids, vectors = map(np.concatenate, zip(*parts, strict=True))
                eligible.decoded = ids, vectors
            yield eligible.decoded
