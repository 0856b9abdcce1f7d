"""What was exported and what was built, from what, with the hash of every file."""

from pathlib import Path
from typing import Literal, Self

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.schema import AD_ID

MANIFEST = "manifest.json"
EXAMPLES = "examples.json"


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def save(self, folder: Path) -> None:
        """Write `manifest.json`."""
        (folder / MANIFEST).write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `manifest.json`.

        Raises:
            ManifestError: missing, or not of this kind.
        """
        try:
            return cls.model_validate_json((folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise ManifestError(f"{folder / MANIFEST}: {error}") from None


class EmbeddingManifest(_Manifest):
    """Exported vectors of the ads.

    Attributes:
        checkpoint: the towers that made them.
        lookups: precision in which rows of sharded tables travelled between ranks.
        files: sha256 of each.
    """

    checkpoint: Origin
    lookups: Literal["fp32", "fp16"]
    schema_fingerprint: str
    similarity: str
    dim: int
    count: int
    files: dict[str, str]


class Gate(_Manifest):
    """How the index compared with brute force, on held-out users, before publication.

    Attributes:
        recall: share of the exact top `k` that the index returns, mean over `queries`.
        score_error: largest difference of a returned score from the inner product,
            relative where the score exceeds 1.
    """

    k: int
    queries: int
    recall: float
    target_recall: float
    score_error: float


class IndexManifest(_Manifest):
    """A published index."""

    embeddings: EmbeddingManifest
    kind: str
    nlist: int
    nprobe: int
    count: int
    shards: dict[str, str]
    gate: Gate


def load_vectors(
    folder: Path, pattern: str = "part-*.parquet"
) -> tuple[Int64s, Float32s]:
    """ids (N,) and vectors (N, D) of all files that match, in name order."""
    tables = [pq.read_table(path) for path in sorted(folder.glob(pattern))]
    if not tables:
        raise ManifestError(f"{folder} has no {pattern}; run `adrec export`")
    ids = np.concatenate([t[AD_ID].to_numpy() for t in tables])
    parts = [
        chunk.flatten().to_numpy().reshape(len(chunk), chunk.type.list_size)
        for t in tables
        for chunk in t["vector"].chunks
        if len(chunk)
    ]
    return ids, np.concatenate(parts)


def vectors_of(folder: Path, ids: Int64s) -> Float32s:
    """The exported vectors of some ads, in the order of `ids`, (n, D).

    Raises:
        ManifestError: one was not exported, or the files cannot be read.
    """
    try:
        rows = pl.scan_parquet(folder / "part-*.parquet")
        rows = rows.filter(pl.col(AD_ID).is_in(ids.tolist()))
        found = rows.collect().sort(AD_ID)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ManifestError(f"{folder} cannot be read: {error}") from None
    lacking = np.setdiff1d(ids, found[AD_ID].to_numpy())
    if len(lacking):
        raise ManifestError(
            f"ad {lacking[0]} of the catalog is not in {folder}; export and index again"
        )
    vectors = found["vector"].to_numpy()
    return np.asarray(vectors[np.searchsorted(found[AD_ID].to_numpy(), ids)])
