"""Exported vectors -> index shards on all ranks -> gate -> a published index.

index/
  shard-00000.faiss ...    some of the inverted lists, or of the ads by rising id
  ids.npy                  the ad of every number, by rising id
  manifest.json            made from what, kind, sizes, search setting, sha256 of shards
  metrics.json             recall against brute force on held-out users
"""

import json
import logging
from pathlib import Path

import numpy as np

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.export.export import QUERIES
from torchrec_adrec.index.build import build_files
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds import derive_kind
from torchrec_adrec.index.manifest import IDS, IndexManifest, load_vectors
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
    exported = _open_export(embeddings)
    kind = derive_kind(settings, exported.manifest.count)
    layout = build_files(kind, exported, settings.shards, seed, process, out)
    if not process.is_first:
        return
    # Opened from the files: what is measured is what serving will read.
    index = ShardedIndex.open(out, layout, kind)
    queries = _held_out_users(embeddings, settings.queries, seed)
    ids, vectors = load_vectors(embeddings)
    gate = tune_and_validate(index, ids, vectors, queries, k, settings.target_recall)
    manifest = IndexManifest(
        embeddings=exported.manifest,
        kind=kind.name,
        sizes=dict(vars(kind)),
        search=index.setting,
        count=index.count,
        layout=layout,
        files={name: sha256(out / name) for name in (*layout.names, IDS)},
        gate=gate,
    )
    manifest.save(out)
    (out / "metrics.json").write_text(json.dumps(gate.model_dump(), indent=1) + "\n")
    log.info("index: %s", manifest.summary)


def _open_export(folder: Path) -> Embeddings:
    """Open a whole export, made from the towers that will be served.

    Raises:
        ManifestError: as of `build_index`.
    """
    exported = Embeddings.open(folder)
    files = exported.manifest.files
    # The parts are compared by the ranks that read them, each its own.
    others = {n: files[n] for n in files if n not in exported.manifest.parts}
    check_files(folder, others)
    towers = final_checkpoint(folder.parent / "retrieval")
    check_origin(folder, exported.manifest.checkpoint, towers)
    return exported


def _held_out_users(embeddings: Path, count: int, seed: int) -> Float32s:
    """Draw at most `count` of the exported users, (B, D)."""
    _, users = load_vectors(embeddings, QUERIES)
    order = np.random.default_rng(seed).permutation(len(users))
    return users[order[:count]]
