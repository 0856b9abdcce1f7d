"""The manifests of the exported vectors and of the index built from them.

Each names what it was made from and the hash of every file, so that parts that do not
belong together are refused.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, model_validator

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.config.run import VectorType
from torchrec_adrec.errors import ManifestError, reason
from torchrec_adrec.index.kinds.kind import SearchSetting, describe
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.schema import AD_ID

MANIFEST = "manifest.json"
EXAMPLES = "examples.json"
DTYPE = b"dtype"  # of the numbers in a column of vectors, in the field's metadata
IDS = "ids.npy"  # of an index: the ad of every number


def shard_name(number: int) -> str:
    """Return the file name of a shard of an index."""
    return f"shard-{number:05d}.faiss"


class Manifest(BaseModel):
    """A frozen record; those of a whole folder are its `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    command: ClassVar[str] = "index"  # what makes it: a version's folder does not tell

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
            return cls.model_validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValueError) as error:
            raise ManifestError(
                f"{folder / MANIFEST}: {reason(error)}; it was damaged, or made by"
                f" another version: run `adrec {cls.command}` again"
            ) from None


class EmbeddingManifest(Manifest):
    """The exported vectors of the ads.

    Attributes:
        checkpoint: of the towers that made them.
        lookups: precision in which rows of sharded tables travelled between ranks.
        dtype: in which vectors were written.
        dim: D, the width of a vector.
        count: number of ads.
        parts: name -> number of ads of each file of vectors, in the order of the ids.
        files: name -> sha256 of each file, the parts among them.
    """

    command: ClassVar[str] = "export"

    checkpoint: Origin
    lookups: Literal["fp32", "fp16"]
    schema_fingerprint: str
    similarity: str
    dtype: VectorType = "fp32"
    dim: int
    count: int
    parts: dict[str, int]
    files: dict[str, str]

    @model_validator(mode="after")
    def _parts_have_hashes(self) -> Self:
        _check_hashed(self.parts, self.files)
        return self


class Layout(Manifest):
    """Which part of the index each of S files holds (`pieces.py`).

    Attributes:
        rows: (S + 1,) file s holds rows `rows[s]` to `rows[s + 1]` of a table.
        lists: (S + 1,) likewise the inverted lists; empty where there are none.
    """

    rows: tuple[int, ...]
    lists: tuple[int, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the files, in order."""
        return [shard_name(number) for number in range(len(self.rows) - 1)]


class GroupRecall(Manifest):
    """The recall of some of the best ads.

    Attributes:
        ads: number of ads in the group.
        among_best: how often brute force puts one of them among the best K.
        recall: share of these that the index returns.
        low, high: 95% interval, from draws of the users.
    """

    ads: int
    among_best: int
    recall: float
    low: float
    high: float


class FilteredSearch(Manifest):
    """A search where only a share of the ads is eligible.

    Attributes:
        share: of all ads, drawn by chance.
        search: the cheapest setting that reaches the target recall.
        recall: against brute force over the eligible ads.
        milliseconds: median of single queries on one thread.
        all_milliseconds: the same where every eligible ad is compared.
    """

    share: float
    search: SearchSetting
    recall: float
    milliseconds: float
    all_milliseconds: float


class Gate(Manifest):
    """The comparison of the index with brute force on held-out users.

    Attributes:
        k: number of ads retrieved for each query.
        queries: number of held-out users who were measured.
        tuned_on: number of other users whom the search setting was chosen on.
        recall: share of the exact top `k` that the index returns, mean over `queries`.
        low, high: 95% interval of it, from draws of the users.
        score_error: largest difference of a returned score from the inner product
            with the stored vector, relative where the score exceeds 1.
        code_error: largest distance of a stored vector from the exported one, as a
            share of its length.
        by_popularity: recall by tenth of the training impressions (1: most shown) and
            of `cold` ads; empty where the catalog does not tell.
        worst_shard: lowest recall of the ads of one shard.
        short_lists: users for whom fewer than `k` ads were in what the search read;
            they were compared with every ad.
        self_hits: share of sampled ads that their own vector finds; None for vectors
            of different lengths, of which a longer one may score higher.
        lengths: of the shortest and the longest exported vector.
        milliseconds: of single queries on one thread, `p50`, `p95`, `p99`.
        filtered: what was chosen where few ads are eligible.
        device: where all of this was searched.
        bytes_per_ad: of the shard files.
        choice: why this kind; both are added by who chose it and wrote the files.
    """

    k: int
    queries: int
    tuned_on: int
    recall: float
    low: float
    high: float
    target_recall: float
    score_error: float
    code_error: float
    by_popularity: dict[str, GroupRecall]
    worst_shard: float
    short_lists: int
    self_hits: float | None
    lengths: tuple[float, float]
    milliseconds: dict[str, float]
    filtered: tuple[FilteredSearch, ...]
    device: Literal["cpu", "gpu"] = "cpu"
    bytes_per_ad: float = 0
    choice: str = ""


class IndexManifest(Manifest):
    """A published index.

    Attributes:
        embeddings: what it was built from.
        kind: a name of `index.kinds.KINDS`.
        build: build parameters of that kind, as `{"nlist": 4000}`.
        search: the setting that the gate chose, as `{"nprobe": 32}`.
        count: number of ads.
        layout: what each shard holds.
        changes: name of the changes of the export that were built in; empty: none.
        files: name -> sha256 of each file, shards and the table of ids.
        gate: how it was measured.
    """

    embeddings: EmbeddingManifest
    kind: str
    build: dict[str, int]
    search: SearchSetting
    count: int
    layout: Layout
    changes: str = ""
    files: dict[str, str]
    gate: Gate

    @model_validator(mode="after")
    def _shards_have_hashes(self) -> Self:
        _check_hashed([*self.layout.names, IDS], self.files)
        return self

    @property
    def summary(self) -> str:
        """One line for people."""
        kind = [self.kind, describe(self.build), describe(self.search)]
        shards = len(self.layout.names)
        return (
            f"{', '.join(filter(None, kind))} of {self.count} ads in {shards} shards,"
            f" recall@{self.gate.k} {self.gate.recall:.4f},"
            f" {self.gate.milliseconds['p50']:.2f} ms a search"
        )


def _check_hashed(names: Iterable[str], files: Mapping[str, str]) -> None:
    # What is not named is not compared with anything: a reader would take any file.
    for name in names:
        if name not in files:
            raise ValueError(f"files has no hash of {name}")


def load_vectors(
    folder: Path, pattern: str = "part-*.parquet"
) -> tuple[Int64s, Float32s]:
    """Read ids (N,) and vectors (N, D) of all files that match, in name order.

    Raises:
        ManifestError: no file matches.
    """
    tables = [pq.read_table(path) for path in sorted(folder.glob(pattern))]
    if not tables:
        raise ManifestError(f"{folder} has no {pattern}; run `adrec export`")
    ids = np.concatenate([table[AD_ID].to_numpy() for table in tables])
    return ids, np.concatenate([vectors_in(table) for table in tables])


def vectors_in(table: pa.Table) -> Float32s:
    """Return the vectors of a table that was written by `export`, (n, D).

    Raises:
        ManifestError: an older version wrote it.
    """
    field = table.schema.field("vector")
    if DTYPE not in (field.metadata or {}):
        raise ManifestError(
            f"vectors are {field.type}, expected bytes and their type; they were made"
            " by another version: run `adrec export` again"
        )
    dtype = np.dtype(field.metadata[DTYPE].decode())
    vectors = np.empty((len(table), field.type.byte_width // dtype.itemsize), "f4")
    first = 0
    for chunk in table["vector"].chunks:
        numbers = np.frombuffer(chunk.buffers()[1] or b"", dtype)
        numbers = numbers.reshape(-1, vectors.shape[1])
        part = numbers[chunk.offset : chunk.offset + len(chunk)]
        vectors[first : first + len(part)] = part
        first += len(part)
    return vectors


def vectors_of(folder: Path, ids: Int64s) -> Float32s:
    """Read the exported vectors of some ads, in the order of `ids`, (n, D).

    Raises:
        ManifestError: one was not exported, or the files cannot be read.
    """
    paths = sorted(folder.glob("part-*.parquet"))
    filters = [(AD_ID, "in", ids.tolist())]
    try:
        tables = [pq.read_table(path, filters=filters) for path in paths]
        exported = pa.concat_tables(tables).sort_by(AD_ID)
    except (OSError, pa.ArrowInvalid) as error:
        raise ManifestError(f"{folder} cannot be read: {error}") from None
    exported_ids = exported[AD_ID].to_numpy()
    missing = np.setdiff1d(ids, exported_ids)
    if len(missing):
        raise ManifestError(
            f"ad {missing[0]} of the catalog is not in {folder}; export and index again"
        )
    return vectors_in(exported)[np.searchsorted(exported_ids, ids)]
