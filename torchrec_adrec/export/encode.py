"""Checkpoint + catalog -> the vector of every ad, written by all ranks.

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
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.config.run import Config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.distributed import checkpoint
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
    start: checkpoint.Checkpoint,
    data: Path,
    config: Config,
    process: Process,
    out: Path,
) -> None:
    """Encode the catalog and the held-out clicks' users. Collective.

    Each rank encodes and writes a contiguous slice; nothing is gathered.

    Args:
        model: the retrieval task, sharded, with `start` loaded.
        start: named in the manifest.
        out: an existing folder.
    """
    model.eval()
    schema = Schema.load(data / "schema.json")
    towers: TwoTower = model.module.model
    catalog = load_catalog(data)
    own = slice_of(len(catalog), process)
    vectors = encode(towers.ad_tower, catalog, schema, Side.AD, config, process)
    part = f"part-{process.rank:05d}.parquet"
    write_vectors(out / part, catalog[AD_ID].to_numpy()[own], vectors)
    clicks, _ = held_out_clicks(data, schema, config.seed)
    users = encode(towers.user_tower, clicks, schema, Side.USER, config, process)
    clicked = clicks[AD_ID].to_numpy()[slice_of(len(clicks), process)]
    write_vectors(out / f"queries-{process.rank:05d}.parquet", clicked, users)
    examples = encode_examples(towers.user_tower, data, process)
    process.barrier()
    if process.is_first:
        (out / EXAMPLES).write_text(json.dumps(examples) + "\n")
        _join_queries(out)
        _write_manifest(start, catalog, schema, config, out)
    process.barrier()
    # As they stand in the files: what is judged is what is searched and served.
    _, ads = load_vectors(out, part)
    _, queries = load_vectors(out, QUERIES)
    judged = judge(ads, own, queries, data, schema, config.seed, process)
    if process.is_first:
        _write_figures(judged, out)


def slice_of(rows: int, process: Process) -> slice:
    """This rank's contiguous share of `rows`."""
    share = -(-rows // process.world_size)
    return slice(min(process.rank * share, rows), min((process.rank + 1) * share, rows))


@torch.no_grad()
def encode(
    tower: nn.Module,
    frame: pl.DataFrame,
    schema: Schema,
    side: Side,
    config: Config,
    process: Process,
) -> Float32s:
    """This rank's share of the rows through one tower, (rows, D).

    Collective: a lookup in sharded tables needs every rank, so all take as many steps
    as the largest share has, the others on rows that are then dropped.
    """
    own = frame[slice_of(len(frame), process)]
    share = -(-len(frame) // process.world_size)
    size = -(-config.train.eval_batch_size // process.world_size)
    parts = []
    with Progress(f"encoding {side}s", len(frame), "rows") as progress:
        for part in _padded(own, frame, share, size):
            columns = {name: part[name].to_numpy() for name in schema.columns_of(side)}
            rows = tower_input(columns, schema, side).to(process.device)
            parts.append(tower(rows).cpu().numpy())
            progress.advance(min(size * process.world_size, len(frame) - progress.done))
    vectors = np.concatenate(parts)[: len(own)]
    _check_vectors(vectors, side, config)
    return vectors


@torch.no_grad()
def encode_examples(
    tower: nn.Module, data: Path, process: Process
) -> list[dict[str, Any]]:
    """The example users as serving meets them, raw, and their vectors. Collective:
    every rank encodes all of them.
    """
    encoder = Encoder.load(data)
    users = json.loads((data / "example_users.json").read_text())
    raw = [raw_user(user, encoder.schema) for user in users]
    encoded = [encoder.encode(columns, Side.USER) for columns in raw]
    rows = {name: np.concatenate([e[name] for e in encoded]) for name in encoded[0]}
    vectors = tower(tower_input(rows, encoder.schema, Side.USER).to(process.device))
    pairs = zip(users, vectors.tolist(), strict=True)
    return [{"user": user, "vector": vector} for user, vector in pairs]


def _check_vectors(vectors: Float32s, side: Side, config: Config) -> None:
    """A vector that is not finite would win or lose every comparison.

    Raises:
        CheckpointError: the model gives vectors that cannot be compared.
    """
    norms = np.linalg.norm(vectors, axis=1)
    wrong = ~np.isfinite(norms)
    if config.retrieval.similarity == "cosine":
        wrong |= np.abs(norms - 1) > NORM_TOLERANCE
    if wrong.any():
        raise CheckpointError(
            f"{wrong.sum()} of {len(wrong)} {side} vectors are not finite, or not of"
            f" length 1 (one has {norms[wrong][0]}); train again"
        )


def _padded(
    own: pl.DataFrame, frame: pl.DataFrame, share: int, size: int
) -> Iterator[pl.DataFrame]:
    """`share` rows in parts of `size`: this rank's, filled up with the first row."""
    lacking = share - len(own)
    if lacking:
        own = pl.concat([own, *[frame.head(1)] * lacking])
    for first in range(0, share, size):
        yield own[first : first + size]


def write_vectors(path: Path, ids: Int64s, vectors: Float32s) -> None:
    """One row per id: `ad_id` and `vector`."""
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(pa.table({AD_ID: pa.array(ids), "vector": lists}), path)


def _join_queries(out: Path) -> None:
    parts = sorted(out.glob("queries-*.parquet"))
    pq.write_table(pa.concat_tables([pq.read_table(p) for p in parts]), out / QUERIES)
    for part in parts:
        part.unlink()


def _write_manifest(
    start: checkpoint.Checkpoint,
    catalog: pl.DataFrame,
    schema: Schema,
    config: Config,
    out: Path,
) -> None:
    written = [*sorted(out.glob("part-*.parquet")), out / QUERIES, out / EXAMPLES]
    EmbeddingManifest(
        checkpoint=start.origin,
        lookups=config.sharding.qcomm,
        schema_fingerprint=schema.fingerprint,
        similarity=config.retrieval.similarity,
        dim=config.retrieval.vector_dim,
        count=len(catalog),
        files={path.name: sha256(path) for path in written},
    ).save(out)


def _write_figures(judged: dict[str, Any], out: Path) -> None:
    (out / "metrics.json").write_text(json.dumps({"test": judged}, indent=1) + "\n")
    if any(name.startswith("recall@") for name in judged["all"]["towers"]):
        recall_by_popularity(judged, out / PICTURE)
