"""What training the towers needs on a cluster: memory, bytes and milliseconds a step.

Tables by TorchRec's planner with the cluster's figures; the dense part by its floating
point operations over a stated share of the GPU's peak. Nothing of it was measured on a
GPU, and nothing overlaps in it.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
from torch import nn

from torchrec_adrec.config import Config
from torchrec_adrec.distributed.constraints import constraints, ids_per_row, tables_of
from torchrec_adrec.distributed.optimizer import fuse_table_optimizer
from torchrec_adrec.distributed.plan_report import RankLoad, rank_loads
from torchrec_adrec.distributed.planner import (
    DENSE_SHARE,
    GIB,
    Sharder,
    TablePlan,
    plan_tables,
)
from torchrec_adrec.distributed.sharding import codecs, meta_device
from torchrec_adrec.errors import ConfigError, PlanError
from torchrec_adrec.losses.chunked import BLOCK
from torchrec_adrec.planning.cluster import Cluster
from torchrec_adrec.planning.traffic import Traffic, traffic
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks import build_task

PEAK_SHARE = 0.4  # of a GPU's fp32 peak that large matrix products reach
FLOAT = 4
STATE = 4 * FLOAT  # a dense parameter's weight, gradient and AdamW's two moments
SAVED = 3 * FLOAT  # of these a checkpoint holds all but the gradient


@dataclass(frozen=True)
class DensePart:
    """All but the tables, on each rank.

    Attributes:
        parameters: their number.
        activations: bytes kept for backward, looked-up vectors and softmax included.
        operations: floating point operations of a step, forward and backward.
    """

    parameters: int
    activations: int
    operations: float

    @property
    def memory(self) -> int:
        """Bytes of weights, gradients, AdamW's moments and activations."""
        return self.parameters * STATE + self.activations


@dataclass(frozen=True)
class Estimate:
    """One cluster, judged.

    Attributes:
        batch: rows of a step over all ranks.
        sent: bytes that ranks send in a step.
        ms: estimated milliseconds of a step by part, of the slowest rank.
        checkpoint: bytes.
        index: bytes of one FAISS shard's vectors and ids, in host memory; None where
            the number of ads is not known.
    """

    cluster: Cluster
    batch: int
    plan: TablePlan
    loads: list[RankLoad]
    dense: DensePart
    sent: Traffic
    ms: dict[str, float]
    checkpoint: int
    index: int | None

    @property
    def step_ms(self) -> float:
        """Sum of the parts."""
        return sum(self.ms.values())

    @property
    def fullest(self) -> int:
        """Bytes on the rank that holds most."""
        return max(load.memory for load in self.loads) + self.dense.memory


def estimate(
    schema: Schema, config: Config, cluster: Cluster, batch: int, ads: int | None
) -> Estimate:
    """Plan and judge one cluster.

    Raises:
        PlanError: it does not fit, with the numbers.
        ConfigError: a batch that is no multiple of the ranks.
    """
    if batch % cluster.ranks:
        raise ConfigError(
            f"batch {batch:,} is no multiple of the {cluster.ranks} GPUs; every GPU"
            " takes the same number of rows"
        )
    rows = batch // cluster.ranks
    model = build_task("retrieval", schema, config, meta_device())
    fuse_table_optimizer(model, config.towers.optimizer)
    plan = _plan(model, schema, config, cluster, rows)
    dense = dense_part(model, config.towers.output_dim, rows, batch)
    _dense_fits(dense, cluster)
    width, qcomm = config.towers.output_dim, config.sharding.qcomm
    sent = traffic(plan, rows, dense.parameters, width, qcomm)
    return Estimate(
        cluster=cluster,
        batch=batch,
        plan=plan,
        loads=rank_loads(plan),
        dense=dense,
        sent=sent,
        ms=_milliseconds(plan, dense, sent, cluster),
        checkpoint=_checkpoint(plan, dense),
        index=None if ads is None else _index(config, ads),
    )


def _plan(
    model: nn.Module, schema: Schema, config: Config, cluster: Cluster, rows: int
) -> TablePlan:
    topology = cluster.topology()
    ids = ids_per_row(schema)
    allowed = constraints(tables_of(model), config.sharding, ids, topology)
    sharder = Sharder(qcomm_codecs_registry=codecs(config.sharding.qcomm, None))
    return plan_tables(model, sharder, topology, allowed, rows)


def dense_part(model: nn.Module, width: int, rows: int, batch: int) -> DensePart:
    """Count what is not a table: linear layers, looked-up vectors, in-batch softmax.

    Args:
        width: D of a user's or an ad's vector.
        rows: of one rank; `batch`: of all.
    """
    tables = tables_of(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    weights -= sum(table.num_embeddings * table.embedding_dim for table in tables)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    # A layer keeps its input, and its output once more behind activation and dropout.
    kept = sum(layer.in_features + 2 * layer.out_features for layer in layers)
    kept += 2 * sum(table.embedding_dim for table in tables)  # vectors, gradients
    # Gathered ads and both gradients; of the logits there is one block at a time.
    softmax = min(BLOCK, rows * batch) + 3 * batch * width
    # Two operations a weight and row forward, twice as many backward.
    operations = 6 * rows * sum(layer.weight.numel() for layer in layers)
    operations += 6 * rows * batch * width
    return DensePart(weights, (rows * kept + softmax) * FLOAT, operations)


def _dense_fits(dense: DensePart, cluster: Cluster) -> None:
    there = int(cluster.gpu.memory * GIB * DENSE_SHARE)
    if dense.memory > there:
        raise PlanError(
            f"the dense part needs {dense.memory / GIB:,.1f} GiB on each rank"
            f" (activations {dense.activations / GIB:,.1f}), {there / GIB:,.1f} GiB"
            f" ({DENSE_SHARE:.0%} of {cluster.gpu.name}) are kept for it; take a"
            " smaller batch or more GPUs",
            dense.memory * cluster.ranks,
            there * cluster.ranks,
        )


def _milliseconds(
    plan: TablePlan, dense: DensePart, sent: Traffic, cluster: Cluster
) -> dict[str, float]:
    """Tables: of the rank whose sum is largest, as TorchRec estimates it."""
    parts = ("fwd_compute", "fwd_comms", "bwd_comms", "bwd_compute")
    by_rank = np.zeros((plan.topology.world_size, len(parts)))
    for shard in (shard for option in plan.chosen for shard in option.shards):
        by_rank[shard.rank] += [getattr(shard.perf, part) for part in parts]
    lookup, vectors, gradients, update = by_rank[by_rank.sum(axis=1).argmax()].tolist()

    def link(part: str) -> float:
        return float(sent.parts()[part].max()) / cluster.bandwidth * 1e3

    peak = cluster.gpu.fp32 * 1e12 * PEAK_SHARE
    return {
        "ids": link("ids"),
        "lookup": lookup,
        "vectors": vectors,
        "ads": link("ads"),
        "dense": dense.operations / peak * 1e3,
        "dense all-reduce": link("dense"),
        "gradients": gradients,
        "update": update,
    }


def _checkpoint(plan: TablePlan, dense: DensePart) -> int:
    tables = sum(int(option.tensor.numel()) for option in plan.chosen)
    shards = (shard for option in plan.chosen for shard in option.shards)
    rows = sum(int(shard.size[0]) for shard in shards)
    return (tables + rows) * FLOAT + dense.parameters * SAVED


def _index(config: Config, ads: int) -> int:
    each = ceil(ads / config.index.shards)
    return each * (config.towers.output_dim * FLOAT + 8)
