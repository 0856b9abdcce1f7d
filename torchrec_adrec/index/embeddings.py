"""The exported vectors, read a part at a time: nobody has to hold all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow.parquet as pq

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.index.manifest import EmbeddingManifest, vectors_in
from torchrec_adrec.runtime.files import check_files
from torchrec_adrec.schema import AD_ID


@dataclass(frozen=True)
class Embeddings:
    """What `export` wrote: parts of consecutive ads, in rising order of their ids.

    The number of an ad is its place in this order.

    Attributes:
        folder: of the files.
        manifest: names them, with their rows.
    """

    folder: Path
    manifest: EmbeddingManifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the manifest.

        Raises:
            ManifestError: it is damaged, or its parts do not add up.
        """
        manifest = EmbeddingManifest.load(folder)
        if sum(manifest.parts.values()) != manifest.count:
            raise ManifestError(
                f"{folder}: the parts hold {sum(manifest.parts.values())} ads, the"
                f" manifest says {manifest.count}; run `adrec export` again"
            )
        return cls(folder, manifest)

    @property
    def count(self) -> int:
        """The number of ads."""
        return self.manifest.count

    @property
    def starts(self) -> Int64s:
        """The number of each part's first ad, and of all ads, (P + 1,)."""
        return np.cumsum([0, *self.manifest.parts.values()])

    def share(self, number: int, shares: int) -> range:
        """Return the parts of one of several equal shares, which are whole parts."""
        parts = len(self.manifest.parts)
        return range(number * parts // shares, (number + 1) * parts // shares)

    def check(self, parts: range) -> None:
        """Compare some files with their hashes.

        Raises:
            ManifestError: one is damaged.
        """
        names = list(self.manifest.parts)
        hashes = {names[part]: self.manifest.files[names[part]] for part in parts}
        check_files(self.folder, hashes)

    def read(self, parts: range) -> Iterator[tuple[Int64s, Int64s, Float32s]]:
        """Yield numbers (n,), ids (n,) and vectors (n, D) of one part after the other.

        Raises:
            ManifestError: a part does not hold what the manifest says.
        """
        names, starts = list(self.manifest.parts), self.starts
        for part in parts:
            numbers = np.arange(starts[part], starts[part + 1])
            table = pq.read_table(self.folder / names[part])
            ids = table[AD_ID].to_numpy()
            if len(ids) != len(numbers) or not (np.diff(ids) > 0).all():
                raise ManifestError(
                    f"{self.folder / names[part]} holds {len(ids)} ads, expected"
                    f" {len(numbers)} in rising order of ids; run `adrec export` again"
                )
            yield numbers, ids, vectors_in(table)

    def vectors(self, parts: range) -> Float32s:
        """Return the vectors of some parts, (n, D).

        Raises:
            ManifestError: as of `read`.
        """
        empty = np.empty((0, self.manifest.dim), dtype=np.float32)
        return np.concatenate([empty, *(v for *_, v in self.read(parts))])

    def sample(self, size: int, seed: int) -> Float32s:
        """Draw vectors of all parts without holding more, (at most `size`, D)."""
        count, parts = self.count, range(len(self.manifest.parts))
        rng = np.random.default_rng(seed)
        rows = rng.choice(count, min(size, count), replace=False)
        picked = [vectors[np.isin(n, rows)] for n, _, vectors in self.read(parts)]
        return np.concatenate(picked)

    def ids(self) -> Int64s:
        """Return the ids of all ads, (N,): 8 bytes each, without their vectors.

        Raises:
            ManifestError: they do not rise from part to part.
        """
        names = self.manifest.parts
        tables = [pq.read_table(self.folder / n, columns=[AD_ID]) for n in names]
        ids = np.concatenate([table[AD_ID].to_numpy() for table in tables])
        distinct = len(np.unique(ids))
        if len(ids) != self.manifest.count or not (np.diff(ids) > 0).all():
            raise ManifestError(
                f"{self.folder} holds {distinct} distinct ads in {len(ids)} rows, the"
                f" manifest says {self.manifest.count}, in rising order; run `adrec"
                " export` again"
            )
        return ids


@dataclass(frozen=True)
class ChangedEmbeddings(Embeddings):
    """What was exported, with later changes in it.

    A changed ad is in the part in whose range its id lies, so that the ids rise from
    part to part as before.

    Attributes:
        changes: of this export.
    """

    changes: Changes

    @cached_property
    def _exported(self) -> list[Int64s]:
        """The ids of each part as it was written."""
        paths = [self.folder / name for name in self.manifest.parts]
        return [pq.read_table(p, columns=[AD_ID])[AD_ID].to_numpy() for p in paths]

    @cached_property
    def _bounds(self) -> Int64s:
        """The place of each part's first changed ad, and of the last one, (P + 1,)."""
        firsts = [ids[0] for ids in self._exported[1:]]
        places = np.searchsorted(self.changes.ids, firsts)
        return np.array([0, *places, len(self.changes.ids)])

    @cached_property
    def starts(self) -> Int64s:
        """The number of each part's first ad, and of all ads, (P + 1,)."""
        touched = self.changes.touched
        kept = [np.isin(ids, touched, invert=True).sum() for ids in self._exported]
        return np.cumsum([0, *(np.array(kept) + np.diff(self._bounds))])

    @property
    def count(self) -> int:
        """The number of ads."""
        return int(self.starts[-1])

    def read(self, parts: range) -> Iterator[tuple[Int64s, Int64s, Float32s]]:
        """Yield numbers, ids and vectors of one part after the other, as changed.

        Raises:
            ManifestError: as of `Embeddings.read`.
        """
        plain = Embeddings(self.folder, self.manifest)
        for part in parts:
            ((_, ids, vectors),) = plain.read(range(part, part + 1))
            kept = np.isin(ids, self.changes.touched, invert=True)
            changed = slice(self._bounds[part], self._bounds[part + 1])
            ids = np.concatenate([ids[kept], self.changes.ids[changed]])
            vectors = np.concatenate([vectors[kept], self.changes.vectors[changed]])
            order = np.argsort(ids)
            numbers = np.arange(self.starts[part], self.starts[part + 1])
            yield numbers, ids[order], vectors[order]

    def ids(self) -> Int64s:
        """Return the ids of all ads, (N,).

        Raises:
            ManifestError: as of `Embeddings.ids`.
        """
        exported = Embeddings.ids(self)
        kept = np.isin(exported, self.changes.touched, invert=True)
        return np.union1d(exported[kept], self.changes.ids)
