"""Exported vectors -> index shards on all ranks -> gate -> a published index.

index/
  shard-00000.faiss ...    every S-th ad by rising id
  manifest.json            made from what, kind, build and search parameters, sha256
  gate.json, gate.png      what was measured against brute force on held-out users
  metrics.json             the recall alone
"""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.evaluation.pictures import gate_picture
from torchrec_adrec.evaluation.ranking_metrics import popularity_deciles
from torchrec_adrec.export.encode import QUERIES
from torchrec_adrec.index.build import EMPTY, build_shard, shard_name, train_empty
from torchrec_adrec.index.choose import SAMPLE, Choice, Purpose, choose
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds import derive_kind
from torchrec_adrec.index.kinds.kind import IndexKind, describe
from torchrec_adrec.index.manifest import (
    EmbeddingManifest,
    Gate,
    IndexManifest,
    load_vectors,
)
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runtime.files import check_files, sha256
from torchrec_adrec.schema import AD_ID
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
    manifest, ids, vectors = _load_export(embeddings)
    queries = _held_out_users(embeddings, settings.queries, seed)
    if process.is_first:
        choice = _choose(settings, vectors, queries, k, seed)
        log.info("index: %s, because %s", choice.kind.name, choice.reason)
        train_empty(choice.kind, ids, vectors, seed, out)
    process.barrier()  # every rank starts its shards from that file
    for number in range(process.rank, settings.shards, process.world_size):
        build_shard(number, settings.shards, ids, vectors, out)
    process.barrier()
    if not process.is_first:
        return
    (out / EMPTY).unlink()
    # Opened from the files: what is measured is what serving will read.
    names = [shard_name(number) for number in range(settings.shards)]
    index = ShardedIndex.open(out, names, choice.kind)
    exported = _with_popularity(Exported.by_id(ids, vectors), embeddings.parent)
    target, fixed = settings.target_recall, settings.search
    gate = tune_and_validate(index, exported, queries, k, target, fixed)
    size = sum((out / name).stat().st_size for name in names)
    gate = gate.model_copy(
        update={"bytes_per_ad": size / index.count, "choice": choice.reason}
    )
    IndexManifest(
        embeddings=manifest,
        kind=choice.kind.name,
        build=dict(vars(choice.kind)),
        search=index.setting,
        count=index.count,
        shards={name: sha256(out / name) for name in names},
        gate=gate,
    ).save(out)
    _write_report(gate, out)
    _log_summary(choice.kind, index, gate)


def _choose(
    settings: IndexConfig, vectors: Float32s, queries: Float32s, k: int, seed: int
) -> Choice:
    """Take the kind that the settings name, or let the vectors decide."""
    count, dim = vectors.shape
    if settings.kind != "auto":
        kind = derive_kind(settings.kind, settings.build, count, dim)
        return Choice(kind, "index.kind names it")
    rng = np.random.default_rng(seed)
    sample = vectors[rng.choice(count, min(count, SAMPLE), replace=False)]
    memory = settings.memory_gib * 2**30
    return choose(sample, queries, Purpose(count, k, settings.target_recall, memory))


def _with_popularity(exported: Exported, run: Path) -> Exported:
    """Add each ad's decile of the training impressions, as the catalog tells it."""
    catalog = load_catalog(run / "data")
    impressions = catalog["impressions"].to_numpy()
    if not np.array_equal(catalog[AD_ID].to_numpy(), exported.ids):
        raise ManifestError(
            f"{run / 'data'} holds other ads than {run / 'export'}; run `adrec export`"
            " again"
        )
    return replace(exported, groups=popularity_deciles(impressions))


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


def _write_report(gate: Gate, out: Path) -> None:
    """Write what the gate measured: for people, as a picture, and for the pipeline."""
    report = gate.model_dump(mode="json")
    (out / "gate.json").write_text(json.dumps(report, indent=1) + "\n")
    figures = {"k": gate.k, "recall": gate.recall, "target_recall": gate.target_recall}
    (out / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
    gate_picture(report, out / "gate.png")


def _log_summary(kind: IndexKind, index: ShardedIndex, gate: Gate) -> None:
    names = [kind.name, describe(vars(kind)), describe(index.setting)]
    log.info(
        "index: %s of %d ads in %d shards, recall@%d %.4f, %.2f ms a search",
        ", ".join(filter(None, names)),
        index.count,
        len(index.shards),
        gate.k,
        gate.recall,
        gate.milliseconds["p50"],
    )
