"""Ads that were added, replaced and removed since the export: the changes of a run.

changes/
  CURRENT, versions/NAME/     as those of the index; NAME ends in a hash of the manifest
    ads.parquet               the catalog's columns of ads that were added or replaced
    vectors.npy               their vectors, float32
    removed.npy               ids of removed ads
    manifest.json             made from what, how many, sha256 of each file

Every version is whole: it holds all changes since the export, and not those since the
version before. So it can be read with any index of the same export, and an index that
has taken changes in (`Absorbed`) is read with them too: what it holds is not searched
twice.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.index.manifest import (
    MANIFEST,
    EmbeddingManifest,
    Manifest,
)
from torchrec_adrec.runtime.files import Origin, check_files, sha256
from torchrec_adrec.schema import AD_ID

CHANGES = "changes"  # the folder in a run
ADS, VECTORS, REMOVED = "ads.parquet", "vectors.npy", "removed.npy"
HASH_DIGITS = 16  # of the sha256 of the manifest, in the name of a version
REPAIR = (
    "put the name of the version before into CURRENT and repeat the update, or remove"
    " the folder of all changes and run `adrec index compact`"
)


class Source(Manifest):
    """What changes are changes of.

    Attributes:
        export: digest of the manifest of the exported vectors.
        checkpoint: of the towers that made them.
        schema_fingerprint: of the data.
        dim: D, the width of a vector.
    """

    export: str
    checkpoint: Origin
    schema_fingerprint: str
    dim: int

    @classmethod
    def of(cls, exported: EmbeddingManifest) -> Self:
        """Name an export: another one for every other file, checkpoint or schema."""
        return cls(
            export=hashlib.sha256(exported.model_dump_json().encode()).hexdigest(),
            checkpoint=exported.checkpoint,
            schema_fingerprint=exported.schema_fingerprint,
            dim=exported.dim,
        )


class ChangesManifest(Manifest):
    """One version of the changes.

    Attributes:
        source: what they are changes of; the ads were encoded by its towers.
        ads, removed: how many there are.
        files: name -> sha256 of each file.
    """

    command: ClassVar[str] = "index update"

    source: Source
    ads: int
    removed: int
    files: dict[str, str]


@dataclass(frozen=True)
class Changes:
    """All changes since an export.

    Attributes:
        source: that export.
        ads: (M,) rows of the catalog, by rising id, which are added or replace others.
        vectors: (M, D) of them.
        removed: (R,) ids, rising.
        name: of the version that they were read from; empty where there is none.
    """

    source: Source
    ads: pl.DataFrame
    vectors: Float32s
    removed: Int64s
    name: str = ""

    @classmethod
    def none(cls, exported: EmbeddingManifest) -> Self:
        """Return no changes of an export."""
        vectors = np.empty((0, exported.dim), dtype=np.float32)
        ads = pl.DataFrame(schema={AD_ID: pl.Int64})
        return cls(Source.of(exported), ads, vectors, np.empty(0, dtype=np.int64))

    @cached_property
    def ids(self) -> Int64s:
        """The ids of the ads, (M,), rising."""
        return np.asarray(self.ads[AD_ID].to_numpy())

    @cached_property
    def stamps(self) -> Int64s:
        """A hash of each vector, (M,): another one where an ad was replaced again."""
        words = self.vectors.view(np.uint32).astype(np.uint64)
        rng = np.random.default_rng(0)
        # Odd factors and sums modulo 2^64: two vectors share one by chance of 2^-32.
        factors = rng.integers(2**63, size=words.shape[1], dtype=np.uint64)
        sums = (words * (2 * factors + 1)).sum(axis=1, dtype=np.uint64)
        return np.asarray(sums.view(np.int64))

    @property
    def touched(self) -> Int64s:
        """The ids of all ads that are added, replaced or removed, rising."""
        return np.union1d(self.ids, self.removed)

    def after(self, ads: pl.DataFrame, vectors: Float32s, removed: Int64s) -> Self:
        """Return the changes with newer ones, which win over the older.

        Args:
            ads: (m,) added or replaced.
            vectors: (m, D) of them.
            removed: ids that are none of these.
        """
        new = ads[AD_ID].to_numpy()
        kept = ~np.isin(self.ids, np.concatenate([new, removed]))
        joined = pl.concat([f for f in (self.ads.filter(kept), ads) if len(f)] or [ads])
        order = np.argsort(joined[AD_ID].to_numpy())
        both = np.concatenate([self.vectors[kept], vectors])
        return type(self)(
            self.source,
            joined[order],
            np.ascontiguousarray(both[order], dtype=np.float32),
            np.setdiff1d(np.union1d(self.removed, removed), new),
        )

    def rows_behind(self, catalog: pl.DataFrame) -> pl.DataFrame:
        """Put the ads behind a catalog, whose own rows stay where they are."""
        if not len(self.ids):
            return catalog
        return pl.concat([catalog, self.ads.select(catalog.columns)])

    def applied_to(self, catalog: pl.DataFrame) -> pl.DataFrame:
        """Return a catalog with the changes in it, by rising id."""
        kept = ~np.isin(catalog[AD_ID].to_numpy(), self.touched)
        return self.rows_behind(catalog.filter(kept)).sort(AD_ID)

    def save(self, folder: Path) -> str:
        """Write all files to an existing folder; return a hash that names them."""
        self.ads.write_parquet(folder / ADS)
        np.save(folder / VECTORS, self.vectors)
        np.save(folder / REMOVED, self.removed)
        ChangesManifest(
            source=self.source,
            ads=len(self.ids),
            removed=len(self.removed),
            files={name: sha256(folder / name) for name in (ADS, VECTORS, REMOVED)},
        ).save(folder)
        return _hash_of(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read one version and prove that it is whole.

        Args:
            folder: of the version, whose name ends in the hash of its manifest.

        Raises:
            ManifestError: a file is damaged or missing.
        """
        manifest = ChangesManifest.load(folder)
        if not folder.name.endswith(_hash_of(folder)):
            raise ManifestError(f"{folder / MANIFEST} was damaged or changed; {REPAIR}")
        check_files(folder, manifest.files)
        changes = cls(
            manifest.source,
            pl.read_parquet(folder / ADS),
            np.load(folder / VECTORS),
            np.load(folder / REMOVED),
            folder.name,
        )
        if not _fits(changes, manifest):
            raise ManifestError(
                f"{folder} does not hold {manifest.ads} ads, each with one finite"
                f" vector, and {manifest.removed} other ids that were removed; {REPAIR}"
            )
        return changes

    def check_source(self, folder: Path, exported: EmbeddingManifest) -> None:
        """Refuse changes of another export than the one that is served.

        Args:
            folder: which the message names.
            exported: the manifest of the export that the run holds.

        Raises:
            ManifestError: names both.
        """
        expected = Source.of(exported)
        if self.source != expected:
            raise ManifestError(
                f"{folder} changes the export {self.source.export[:12]} of"
                f" {self.source.checkpoint}, the run's is {expected.export[:12]} of"
                f" {expected.checkpoint}; run `adrec index compact`, which encodes the"
                " changed ads again"
            )


def _fits(changes: Changes, manifest: ChangesManifest) -> bool:
    ids, removed, vectors = changes.ids, changes.removed, changes.vectors
    return bool(
        (np.diff(ids) > 0).all()
        and (np.diff(removed) > 0).all()
        and not np.isin(ids, removed).any()
        and (len(ids), len(removed)) == (manifest.ads, manifest.removed)
        and vectors.shape == (len(ids), changes.source.dim)
        and vectors.dtype == np.float32
        and np.isfinite(vectors).all()
    )


def _hash_of(folder: Path) -> str:
    return sha256(folder / MANIFEST)[:HASH_DIGITS]
