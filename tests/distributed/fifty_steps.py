"""Fifty steps of the towers on fixed global batches, on any ranks, sharded in any way.

Run by real gloo ranks and by pytest itself: initial weights and rows depend on names
and steps alone, never on ranks.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from planted import smooth
from rounding import Results
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.loader.collate import collate
from torchrec_adrec.data.loader.parquet import StepRows
from torchrec_adrec.distributed.pipeline import TrainPipeline
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.schema import (
    DenseFeature,
    Label,
    Schema,
    SequenceFeature,
    Side,
    SparseFeature,
)
from torchrec_adrec.tasks.sharded import build

STEPS, ROWS, DIM = 50, 64, 16
SIZES = {"a": 101, "b": 37, "seen": 53, "bought": 10, "liked": 11, "c": 29, "d": 7}
SCHEMA = Schema(
    dense=(
        DenseFeature(name="age", side=Side.USER, source="age"),
        DenseFeature(name="price", side=Side.AD, source="price"),
    ),
    sparse=tuple(
        SparseFeature(name=n, side=side, source=n, num_embeddings=SIZES[n])
        for n, side in zip("acbd", (Side.USER, Side.AD) * 2, strict=True)
    ),
    sequences=tuple(
        SequenceFeature(
            name=n, side=Side.USER, source=n, max_length=k, num_embeddings=SIZES[n]
        )
        for n, k in (("seen", 6), ("bought", 2), ("liked", 3))
    ),
    labels=(Label(name="click"),),
)


TABLES = tuple(f"{side}_{f.name}" for side in Side for f in SCHEMA.bags_of(side))


# A history that is read in its order, from the table of the ads' item.
SHARED = SCHEMA.model_copy(
    update={
        "sequences": (
            SCHEMA.sequences[0].model_copy(
                update={"shares_ids_with": "c", "num_embeddings": SIZES["c"]}
            ),
            *SCHEMA.sequences[1:],
        )
    }
)
SCHEMAS = {"mean": SCHEMA, "attention": SHARED, "gru": SHARED}


@dataclass(frozen=True)
class Case:
    """A way to shard.

    Attributes:
        overrides: settings that ask for it.
        types: of each table, as planned.
        slices: of columns, of the tables that have several.
        encoder: of the history.
    """

    overrides: tuple[str, ...]
    types: dict[str, str]
    slices: tuple[tuple[str, int], ...] = ()
    encoder: str = "mean"


def alike(name: str, slices: int = 1) -> Case:
    """All tables of one type, in so many slices of columns."""
    table = f"{{types: [{name}], min_partition: {DIM // slices}}}"
    overrides = (f"sharding.tables={{'*': {table}}}",)
    cut = tuple((table, slices) for table in TABLES if slices > 1)
    return Case(overrides, dict.fromkeys(TABLES, name), cut)


def in_order(encoder: str, name: str, slices: int = 1) -> Case:
    """An encoded history, its table of one type and all others whole."""
    table = f"{{types: [{name}], min_partition: {DIM // slices}}}"
    overrides = (f"sharding.tables={{ad_c: {table}}}", "sharding.types=[table_wise]")
    types = dict.fromkeys(TABLES, "table_wise") | {"ad_c": name}
    del types["user_seen"]
    cut = (("ad_c", slices),) if slices > 1 else ()
    return Case(overrides, types, cut, encoder)


# Histories of one collection by rows, by columns and whole: their means are taken in
# different places.
MIX = Case(
    (
        "sharding.types=[table_wise]",
        "sharding.tables={user_seen: {types: [row_wise]}, user_a: {types:"
        " [table_row_wise]}, user_bought: {types: [column_wise], min_partition: 4},"
        " 'ad_*': {types: [column_wise], min_partition: 8}}",
    ),
    {
        "user_a": "table_row_wise",
        "user_b": "table_wise",
        "user_seen": "row_wise",
        "user_bought": "column_wise",
        "user_liked": "table_wise",
        "ad_c": "column_wise",
        "ad_d": "column_wise",
    },
    (("user_bought", 4), ("ad_c", 2), ("ad_d", 2)),
)
CASES = {
    "table_wise": alike("table_wise"),
    "row_wise": alike("row_wise"),
    "table_row_wise": alike("table_row_wise"),
    "column_wise": alike("column_wise", 4),
    "table_column_wise": alike("table_column_wise", 4),
    "mix": MIX,
    "attention, whole": in_order("attention", "table_wise"),
    "attention, by rows": in_order("attention", "row_wise"),
    "gru, by columns": in_order("gru", "column_wise", 2),
}
NO_SPLIT: Any = None  # names the file of a bad row; there is none
FP16 = Case(("sharding.types=[row_wise]", "sharding.qcomm=fp16"), {})


def config(*overrides: str, encoder: str = "mean") -> Config:
    sizes = (f"train.batch_size={ROWS}", f"retrieval.embedding_dim={DIM}")
    towers = ("retrieval.hidden=[32]", "retrieval.output_dim=8", "retrieval.dropout=0")
    loss = (
        "retrieval.alpha=0.5",
        "retrieval.temperature=0.2",
        "retrieval.click_bias=false",
    )
    rates = ("retrieval.optimizer={tables_lr: 0.05, dense_lr: 0.003}",)
    history = (
        f"retrieval.history={{encoder: {encoder}, layers: 2, heads: 2, dropout: 0}}",
    )
    return load_config(None, [*sizes, *towers, *loss, *rates, *history, *overrides])


def rows_of(
    step: int, rank: int, ranks: int, order: int | None = None, encoder: str = "mean"
) -> Batch:
    """A rank's slice of the global batch: empty, short and full histories in it.

    Args:
        order: seed of another order of the global batch's rows.
        encoder: of the history, which says whose ids it has.
    """
    schema = SCHEMAS[encoder]
    rng = np.random.default_rng(step)
    columns: dict[str, Any] = {}
    for f in schema.sparse:
        columns[f.name] = rng.integers(0, f.num_embeddings, ROWS).astype(np.int32)
    for s in schema.sequences:
        ids = rng.integers(0, s.num_embeddings, (s.max_length, ROWS))
        lengths = rng.integers(0, s.max_length + 1, ROWS)
        for i, name in enumerate(s.columns):
            columns[name] = np.where(i < lengths, ids[i], -1).astype(np.int32)
    for d in SCHEMA.dense:
        columns[d.name] = rng.normal(size=ROWS).astype(np.float32)
    columns["click"] = (rng.random(ROWS) < 0.4).astype(np.float32)
    columns["ad_id"] = columns["c"].astype(np.int64) * 7 + columns["d"]
    columns["log_q"] = rng.normal(-3, 1, ROWS).astype(np.float32)
    each, places = ROWS // ranks, np.arange(ROWS)
    if order is not None:
        np.random.default_rng([order, step]).shuffle(places)
    local_rows = places[rank * each : (rank + 1) * each]
    local_columns = {name: column[local_rows] for name, column in columns.items()}
    weights = np.ones(each, np.float32)
    return collate(StepRows(local_columns, weights, NO_SPLIT, ()), schema)


def start_of(name: str, shape: torch.Size) -> Tensor:
    """The initial values of a parameter, from its name."""
    rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=rng) * 0.1


@torch.no_grad()
def set_start(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        whole = start_of(name, value.shape)
        if not hasattr(value, "local_shards"):
            value.copy_(whole)
            continue
        for shard in value.local_shards():
            shard.tensor.copy_(whole[_place(shard.metadata)])


def _place(metadata: Any) -> tuple[slice, ...]:
    pairs = zip(metadata.shard_offsets, metadata.shard_sizes, strict=True)
    return tuple(slice(start, start + size) for start, size in pairs)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter as one tensor; NaN where no rank holds a part."""
    whole = {}
    for name, value in model.state_dict().items():
        if not hasattr(value, "local_shards"):
            whole[name] = value.detach().clone()
            continue
        local_parts = [
            (_place(s.metadata), s.tensor.clone()) for s in value.local_shards()
        ]
        held: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(held, local_parts)
        whole[name] = torch.full(value.shape, torch.nan)
        for place, part in (pair for pairs in held for pair in pairs):
            whole[name][place] = part
    return whole


def train(case: Case, process: Process) -> dict[str, Any]:
    """Results and the types of the plan after fifty steps of smooth towers.

    Half-way the model leaves the pipeline, as to be judged.
    """
    settings = config(*case.overrides, encoder=case.encoder)
    model, optimizer, _ = build("retrieval", SCHEMAS[case.encoder], settings, process)
    smooth(model)
    set_start(model)
    model.train()
    pipeline = TrainPipeline(model, optimizer, process.device)
    size, rank = process.world_size, process.rank
    batches = iter(
        [rows_of(step, rank, size, encoder=case.encoder) for step in range(STEPS)]
    )
    losses = []
    for step in range(STEPS):
        if step == STEPS // 2:
            pipeline.detach()
        loss = pipeline.progress(batches).loss.detach().clone()
        dist.all_reduce(loss)
        losses.append(loss.item() / size)
    types = {
        name: sharding.sharding_type
        for part in model.plan.plan.values()
        for name, sharding in part.items()
    }
    return {"results": results_of(losses, whole_weights(model)), "types": types}


def results_of(losses: list[float], weights: dict[str, Tensor]) -> Results:
    """What `Rounding` compares."""
    return {"weights": weights, "losses": {"of each step": torch.tensor(losses)}}
