"""Trained towers -> the vectors of all ads and of held-out users, by all ranks.

export/
  part-00000.parquet ...   ad_id int64, vector: the bytes of D floats, little-endian; in
                           rising order of the ids; a finished one is kept after a stop
  queries.parquet          held-out clicks: vector, clicked ad_id
  valid_queries.parquet    those of the validation rows (evaluation.valid_queries)
  examples.json            the example users: raw columns, vector; serving must agree
  manifest.json            made from what, how many, sha256 of each part
  metrics.json             full-catalog figures of the clicked ads, and their protocol
  recall_by_popularity.png
"""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from torchrec.distributed.model_parallel import DistributedModelParallel

from torchrec_adrec.config.run import Config
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.evaluation.encode import encode
from torchrec_adrec.evaluation.full_catalog import (
    clicks_of,
    held_out_clicks,
    judge,
    judge_towers,
)
from torchrec_adrec.evaluation.known_ads import check_known
from torchrec_adrec.evaluation.pictures import recall_by_popularity
from torchrec_adrec.export.encode import encode_examples, encode_parts
from torchrec_adrec.export.parts import Parts, write_vectors
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.index.manifest import EXAMPLES, EmbeddingManifest, load_vectors
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.runtime.files import sha256
from torchrec_adrec.runtime.memory import peak_mebibytes
from torchrec_adrec.runtime.ranks import share_of
from torchrec_adrec.schema import AD_ID, Schema, Side

QUERIES = "queries.parquet"
VALID_QUERIES = "valid_queries.parquet"
PICTURE = "recall_by_popularity.png"

log = logging.getLogger(__name__)


def export(
    model: DistributedModelParallel,
    checkpoint: Checkpoint,
    data: Path,
    config: Config,
    process: Process,
    out: Path,
) -> None:
    """Encode the catalog and the held-out clicks' users. Collective.

    Each rank encodes and writes parts of its own, so that no rank ever holds all
    vectors. Parts of the same checkpoint that are there already are kept.

    Args:
        model: the retrieval task, sharded, with `checkpoint` loaded.
        checkpoint: named in the manifest.
        data: a prepared data set.
        config: seed, batch size, similarity, lookups and number of queries are used.
        process: this rank.
        out: an existing folder.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
        DataError: no held-out row was clicked.
    """
    model.eval()
    schema = Schema.load(data / "schema.json")
    if config.evaluation.exclude_known:
        check_known(schema, data)  # before the work, not behind it
    towers: TwoTower = model.module.model
    catalog = load_catalog(data)
    parts = Parts(
        out,
        catalog[AD_ID].to_numpy(),
        config.export.dtype,
        {
            "checkpoint": str(checkpoint.origin),
            "schema": schema.fingerprint,
            "lookups": config.sharding.qcomm,
        },
    )
    similarity, size = config.retrieval.similarity, config.train.eval_batch_size
    encode_parts(towers.ad_tower, catalog, schema, similarity, size, parts, process)
    judging = config.evaluation
    clicks, _ = held_out_clicks(data, schema, judging.queries, config.seed)
    valid = pl.DataFrame()
    if judging.valid_queries:
        valid, _ = clicks_of(data, schema, "valid", judging.valid_queries, config.seed)
    for rows, name in ((clicks, QUERIES), (valid, VALID_QUERIES)):
        if len(rows):
            _write_share(rows, towers, out / name, schema, config, process)
    examples = encode_examples(towers.encode_users, data, process)
    # The first rank lists the parts of all ranks, so they must be written by now.
    process.barrier()
    if process.is_first:
        (out / EXAMPLES).write_text(json.dumps(examples) + "\n")
        for name in (QUERIES, VALID_QUERIES):
            _join_shares(out / name, process.world_size)
        lookups = config.sharding.qcomm
        _write_manifest(checkpoint, parts, schema, config.retrieval, lookups)
    process.barrier()
    # Read back from the files: what is judged is what is searched and served. A rank
    # holds its own share of the vectors and no others.
    exported = Embeddings.open(out)
    share = exported.share(process.rank, process.world_size)
    local = slice(int(exported.starts[share.start]), int(exported.starts[share.stop]))
    ads = exported.vectors(share)
    _, queries = load_vectors(out, QUERIES)
    without = judging.exclude_known
    metrics = {
        "test": judge(ads, local, queries, data, schema, config.seed, process, without)
    }
    if len(valid):
        _, queries = load_vectors(out, VALID_QUERIES)
        left_out = schema if without else None
        towers_alone = judge_towers(ads, local, queries, valid, data, process, left_out)
        metrics["valid"] = {"towers": towers_alone}
    if process.is_first:
        _write_metrics(metrics, out)
    log.info(
        "rank %d: %d vectors of its own, peak memory %d MiB",
        process.rank,
        len(ads),
        peak_mebibytes(),
    )


def _write_share(
    clicks: pl.DataFrame,
    towers: TwoTower,
    path: Path,
    schema: Schema,
    config: Config,
    process: Process,
) -> None:
    """Encode and write this rank's share of the users of some clicks. Collective."""
    users = encode(
        towers.encode_users,
        clicks,
        schema,
        Side.USER,
        config.retrieval.similarity,
        config.train.eval_batch_size,
        process,
    )
    clicked = clicks[AD_ID].to_numpy()[share_of(len(clicks), process)]
    write_vectors(_share_of(path, process.rank), clicked, users)


def _share_of(path: Path, rank: int) -> Path:
    return path.with_stem(f"{path.stem}-{rank:05d}")


def _join_shares(path: Path, world_size: int) -> None:
    # An attempt of more ranks may have left files, whose users are in these already.
    parts = [_share_of(path, rank) for rank in range(world_size)]
    if parts[0].exists():
        pq.write_table(pa.concat_tables([pq.read_table(p) for p in parts]), path)
    for part in path.parent.glob(f"{path.stem}-*.parquet"):
        part.unlink()


def _write_manifest(
    checkpoint: Checkpoint,
    parts: Parts,
    schema: Schema,
    retrieval: RetrievalConfig,
    lookups: Literal["fp32", "fp16"],
) -> None:
    out = parts.folder
    paths = [parts.path(number) for number in range(parts.count)]
    slices = [parts.slice_of(number) for number in range(parts.count)]
    EmbeddingManifest(
        checkpoint=checkpoint.origin,
        lookups=lookups,
        schema_fingerprint=schema.fingerprint,
        similarity=retrieval.similarity,
        dtype=parts.dtype,
        dim=retrieval.vector_dim,
        count=len(parts.ids),
        parts={
            path.name: rows.stop - rows.start
            for path, rows in zip(paths, slices, strict=True)
        },
        files={p.name: sha256(p) for p in (*paths, out / QUERIES, out / EXAMPLES)},
    ).save(out)


def _write_metrics(metrics: dict[str, Any], out: Path) -> None:
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    # A catalog smaller than the smallest cut has no recall to draw.
    test = metrics["test"]
    if any(name.startswith("recall@") for name in test["all"]["towers"]):
        recall_by_popularity(test, out / PICTURE)
