"""Exported vectors -> index shards on all ranks -> gate -> a published index.

index/
  shard-00000.faiss ...    every S-th ad by rising id
  manifest.json            made from what, kind, sizes, search setting, sha256 of shards
  metrics.json             recall against brute force on held-out users
"""

import json
import logging
from pathlib import Path

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.export.encode import QUERIES
from torchrec_adrec.index.build import EMPTY, build_shard, shard_name, train_empty
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds import derive_kind
from torchrec_adrec.index.manifest import (
    EmbeddingManifest,
    IndexManifest,
    load_vectors,
)
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runtime.files import check_files, sha256
from torchrec_adrec.tasks.sharded import check_origin, final_checkpoint

log = logging.getLogger(__name__)


def build_index(
    embeddings: Path,
    settings: IndexConfig,
    process: Process,
    out: Path,
    *,
    k: int,
    seed: int,
) -> None:
    """Build and measure an index. Collective; the caller renames the folder.

    Args:
        embeddings: what `export` wrote, in the folder of the run.
        settings: kind and sizes, number of shards, what the gate asks for.
        process: this rank.
        out: an existing folder.
        k: number of ads retrieved when serving; the gate measures the recall of as
            many.
        seed: of the sample that the index is trained on, and of the gate's users.

    Raises:
        ConfigError: the settings do not fit so few ads.
        ManifestError: the exported parts are damaged or incomplete, or from other
            towers than those that will be served.
        GateError: the index is too far from brute force.
    """
    exported, ids, vectors = _load_export(embeddings)
    kind = derive_kind(settings, exported.count)
    if process.is_first:
        train_empty(kind, ids, vectors, seed, out)
    process.barrier()  # every rank starts its shards from that file
    for number in range(process.rank, settings.shards, process.world_size):
        build_shard(number, settings.shards, ids, vectors, out)
    process.barrier()
    if not process.is_first:
        return
    (out / EMPTY).unlink()
    # Opened from the files: what is measured is what serving will read.
    names = [shard_name(number) for number in range(settings.shards)]
    index = ShardedIndex.open(out, names, kind)
    queries = _held_out_users(embeddings, settings.queries, seed)
    gate = tune_and_validate(index, ids, vectors, queries, k, settings.target_recall)
    manifest = IndexManifest(
        embeddings=exported,
        kind=kind.name,
        sizes=dict(vars(kind)),
        search=index.setting,
        count=index.count,
        shards={name: sha256(out / name) for name in names},
        gate=gate,
    )
    manifest.save(out)
    (out / "metrics.json").write_text(json.dumps(gate.model_dump(), indent=1) + "\n")
    log.info("index: %s", manifest.summary)


def _load_export(embeddings: Path) -> tuple[EmbeddingManifest, Int64s, Float32s]:
    """Read manifest, ids (N,) and vectors (N, D) of a whole export.

    Raises:
        ManifestError: as of `build_index`.
    """
    exported = EmbeddingManifest.load(embeddings)
    check_files(embeddings, exported.files)
    towers = final_checkpoint(embeddings.parent / "retrieval")
    check_origin(embeddings, exported.checkpoint, towers)
    ids, vectors = load_vectors(embeddings)
    distinct = len(np.unique(ids))
    if len(ids) != exported.count or distinct != exported.count:
        raise ManifestError(
            f"{embeddings} holds {distinct} distinct ads in {len(ids)} rows, the"
            f" manifest says {exported.count}; run `adrec export` again"
        )
    return exported, ids, vectors


def _held_out_users(embeddings: Path, count: int, seed: int) -> Float32s:
    """Draw at most `count` of the exported users, (B, D)."""
    _, users = load_vectors(embeddings, QUERIES)
    order = np.random.default_rng(seed).permutation(len(users))
    return users[order[:count]]
