"""Exported vectors -> index shards on all ranks -> gate -> a published index."""

import json
import logging
from pathlib import Path

import numpy as np

from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.export.encode import QUERIES
from torchrec_adrec.index.build import EMPTY, build_shard, shard_name, train_empty
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.manifest import (
    EmbeddingManifest,
    Gate,
    IndexManifest,
    load_vectors,
)
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.spec import IndexSpec
from torchrec_adrec.runtime.files import check_files, sha256
from torchrec_adrec.tasks.sharded import check_origin, final_checkpoint

log = logging.getLogger(__name__)


def build_index(embeddings: Path, config: Config, process: Process, out: Path) -> None:
    """Build and judge the index in `out`. Collective; the caller renames the folder.

    Raises:
        ManifestError: the exported parts are damaged or incomplete, or from other
            towers than those that will be served.
        GateError: the index is too far from brute force.
    """
    exported = EmbeddingManifest.load(embeddings)
    check_files(embeddings, exported.files)
    towers = final_checkpoint(embeddings.parent / "retrieval")
    check_origin(embeddings, exported.checkpoint, towers)
    ids, vectors = load_vectors(embeddings)
    if len(ids) != exported.count or len(np.unique(ids)) != exported.count:
        raise ManifestError(
            f"{embeddings} holds {len(np.unique(ids))} distinct ads in {len(ids)} rows,"
            f" the manifest says {exported.count}; run `adrec export` again"
        )
    spec = IndexSpec.derive(config.index, exported.dim, exported.count)
    if process.is_first:
        train_empty(spec, ids, vectors, config.seed, out)
    process.barrier()
    for number in range(process.rank, config.index.shards, process.world_size):
        build_shard(number, config.index.shards, ids, vectors, out)
    process.barrier()
    if process.is_first:
        (out / EMPTY).unlink()
        _judge(spec, exported, embeddings, config, out)


def _judge(
    spec: IndexSpec,
    exported: EmbeddingManifest,
    embeddings: Path,
    config: Config,
    out: Path,
) -> None:
    """Open the shards as serving will, measure them, write the manifest."""
    names = [shard_name(i) for i in range(config.index.shards)]
    hashes = {name: sha256(out / name) for name in names}
    untested = Gate(k=0, queries=0, recall=0, target_recall=0, score_error=0)
    manifest = IndexManifest(
        embeddings=exported,
        kind=spec.kind,
        nlist=spec.nlist,
        nprobe=1,
        count=spec.count,
        shards=hashes,
        gate=untested,
    )
    index = ShardedIndex.load(out, manifest)
    ids, vectors = load_vectors(embeddings)
    _, queries = load_vectors(embeddings, QUERIES)
    kept = np.random.default_rng(config.seed).permutation(len(queries))
    asked = queries[kept[: config.index.queries]]
    gate = tune_and_validate(
        index,
        ids,
        vectors,
        asked,
        config.recommend.candidates,
        config.index.target_recall,
    )
    manifest.model_copy(update={"nprobe": index.nprobe, "gate": gate}).save(out)
    (out / "metrics.json").write_text(json.dumps(gate.model_dump(), indent=1) + "\n")
    log.info(
        "index: %s of %d ads in %d shards, nprobe %d of %d, recall@%d %.4f",
        spec.kind,
        spec.count,
        len(names),
        index.nprobe,
        spec.nlist,
        gate.k,
        gate.recall,
    )
