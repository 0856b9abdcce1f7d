"""Trained towers -> the vectors of all ads and of held-out users, by all ranks.

export/
  part-00000.parquet ...   ad_id int64, vector fixed_size_list<float>[D]
  queries.parquet          held-out clicks: vector, clicked ad_id
  examples.json            the example users: raw columns, vector; serving must agree
  manifest.json            made from what, how many, sha256 of each part
  metrics.json             full-catalog figures of the clicked ads, and their protocol
  recall_by_popularity.png
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.config.run import Config
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.evaluation.full_catalog import held_out_clicks, judge
from torchrec_adrec.evaluation.pictures import recall_by_popularity
from torchrec_adrec.index.manifest import EXAMPLES, EmbeddingManifest, load_vectors
from torchrec_adrec.models.two_tower import TwoTower
from torchrec_adrec.runtime.files import sha256
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.schema import AD_ID, Schema, Side

QUERIES = "queries.parquet"
NORM_TOLERANCE = 1e-3
PICTURE = "recall_by_popularity.png"


def export(
    model: DistributedModelParallel,
    checkpoint: Checkpoint,
    data: Path,
    config: Config,
    process: Process,
    out: Path,
) -> None:
    """Encode the catalog and the held-out clicks' users. Collective.

    Each rank encodes and writes a contiguous slice, so that no rank ever holds all
    vectors.

    Args:
        model: the retrieval task, sharded, with `checkpoint` loaded.
        checkpoint: named in the manifest.
        data: a prepared data set.
        config: seed, batch size, similarity and lookups are used.
        process: this rank.
        out: an existing folder.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
        DataError: no held-out row was clicked.
    """
    model.eval()
    schema = Schema.load(data / "schema.json")
    towers: TwoTower = model.module.model
    catalog = load_catalog(data)
    similarity, size = config.retrieval.similarity, config.train.eval_batch_size
    local = slice_of(len(catalog), process)
    vectors = encode(
        towers.ad_tower, catalog, schema, Side.AD, similarity, size, process
    )
    part = f"part-{process.rank:05d}.parquet"
    write_vectors(out / part, catalog[AD_ID].to_numpy()[local], vectors)
    clicks, _ = held_out_clicks(data, schema, config.seed)
    users = encode(
        towers.user_tower, clicks, schema, Side.USER, similarity, size, process
    )
    clicked = clicks[AD_ID].to_numpy()[slice_of(len(clicks), process)]
    write_vectors(out / f"queries-{process.rank:05d}.parquet", clicked, users)
    examples = encode_examples(towers.user_tower, data, process)
    # The first rank lists the parts of all ranks, so they must be written by now.
    process.barrier()
    if process.is_first:
        (out / EXAMPLES).write_text(json.dumps(examples) + "\n")
        _join_queries(out)
        lookups = config.sharding.qcomm
        _write_manifest(checkpoint, catalog, schema, config.retrieval, lookups, out)
    process.barrier()
    # Read back from the files: what is judged is what is searched and served.
    _, ads = load_vectors(out, part)
    _, queries = load_vectors(out, QUERIES)
    metrics = judge(ads, local, queries, data, schema, config.seed, process)
    if process.is_first:
        _write_metrics(metrics, out)


def slice_of(rows: int, process: Process) -> slice:
    """Return this rank's contiguous share of `rows`."""
    share = -(-rows // process.world_size)
    return slice(min(process.rank * share, rows), min((process.rank + 1) * share, rows))


@torch.no_grad()
def encode(
    tower: nn.Module,
    frame: pl.DataFrame,
    schema: Schema,
    side: Side,
    similarity: str,
    batch_size: int,
    process: Process,
) -> Float32s:
    """Encode this rank's share of the rows with one tower, (rows, D). Collective.

    Args:
        tower: of that side.
        frame: the encoded columns of all ranks' rows.
        schema: of the data.
        side: which columns are taken.
        similarity: of the towers; the vectors of `cosine` must have length 1.
        batch_size: rows of one step over all ranks.
        process: this rank.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
    """
    local = frame[slice_of(len(frame), process)]
    # Rounded up: the largest share, which every rank fills up to, and likewise the
    # rows of one rank in one step.
    share = -(-len(frame) // process.world_size)
    size = -(-batch_size // process.world_size)
    parts = []
    with Progress(f"encoding {side}s", len(frame), "rows") as progress:
        for part in _padded(local, frame, share, size):
            columns = {name: part[name].to_numpy() for name in schema.columns_of(side)}
            rows = tower_input(columns, schema, side).to(process.device)
            parts.append(tower(rows).cpu().numpy())
            progress.advance(min(size * process.world_size, len(frame) - progress.done))
    vectors = np.concatenate(parts)[: len(local)]
    _check_vectors(vectors, side, similarity)
    return vectors


@torch.no_grad()
def encode_examples(
    tower: nn.Module, data: Path, process: Process
) -> list[dict[str, Any]]:
    """Encode the example users from their raw columns, as serving does. Collective.

    Every rank encodes all of them. Serving compares its own vectors with these before
    it answers.
    """
    encoder = Encoder.load(data)
    users = json.loads((data / "example_users.json").read_text())
    raw = [raw_user(user, encoder.schema) for user in users]
    encoded = [encoder.encode(columns, Side.USER) for columns in raw]
    columns = {name: np.concatenate([e[name] for e in encoded]) for name in encoded[0]}
    vectors = tower(tower_input(columns, encoder.schema, Side.USER).to(process.device))
    pairs = zip(users, vectors.tolist(), strict=True)
    return [{"user": user, "vector": vector} for user, vector in pairs]


def _check_vectors(vectors: Float32s, side: Side, similarity: str) -> None:
    """Refuse vectors that would win or lose every comparison.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
    """
    norms = np.linalg.norm(vectors, axis=1)
    wrong = ~np.isfinite(norms)
    if similarity == "cosine":
        wrong |= np.abs(norms - 1) > NORM_TOLERANCE
    if wrong.any():
        raise CheckpointError(
            f"{wrong.sum()} of {len(wrong)} {side} vectors are not finite, or not of"
            f" length 1 (one has {norms[wrong][0]}); train again"
        )


def _padded(
    local: pl.DataFrame, frame: pl.DataFrame, share: int, size: int
) -> Iterator[pl.DataFrame]:
    """Cut this rank's rows into batches, filled up to `share` rows in all.

    A lookup in sharded tables waits for every rank, so all must take as many steps as
    the largest share needs. The vectors of the repeated row are dropped again.
    """
    missing = share - len(local)
    if missing:
        local = pl.concat([local, *[frame.head(1)] * missing])
    for first in range(0, share, size):
        yield local[first : first + size]


def write_vectors(path: Path, ids: Int64s, vectors: Float32s) -> None:
    """Write a Parquet file of `ad_id` and `vector`, one row per id.

    Args:
        path: of the file.
        ids: (N,).
        vectors: (N, D).
    """
    # Lists of a fixed size are one flat buffer, which is read back as a matrix.
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(pa.table({AD_ID: pa.array(ids), "vector": lists}), path)


def _join_queries(out: Path) -> None:
    parts = sorted(out.glob("queries-*.parquet"))
    pq.write_table(pa.concat_tables([pq.read_table(p) for p in parts]), out / QUERIES)
    for part in parts:
        part.unlink()


def _write_manifest(
    checkpoint: Checkpoint,
    catalog: pl.DataFrame,
    schema: Schema,
    retrieval: RetrievalConfig,
    lookups: Literal["fp32", "fp16"],
    out: Path,
) -> None:
    parts = sorted(out.glob("part-*.parquet"))
    written = [*parts, out / QUERIES, out / EXAMPLES]
    EmbeddingManifest(
        checkpoint=checkpoint.origin,
        lookups=lookups,
        schema_fingerprint=schema.fingerprint,
        similarity=retrieval.similarity,
        dim=retrieval.vector_dim,
        count=len(catalog),
        parts={path.name: pq.read_metadata(path).num_rows for path in parts},
        files={path.name: sha256(path) for path in written},
    ).save(out)


def _write_metrics(metrics: dict[str, Any], out: Path) -> None:
    (out / "metrics.json").write_text(json.dumps({"test": metrics}, indent=1) + "\n")
    # A catalog smaller than the smallest cut has no recall to draw.
    if any(name.startswith("recall@") for name in metrics["all"]["towers"]):
        recall_by_popularity(metrics, out / PICTURE)
