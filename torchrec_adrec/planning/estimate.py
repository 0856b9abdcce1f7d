"""Estimate what training the towers needs on a cluster: memory, bytes, milliseconds.

The tables are planned by TorchRec's planner with the cluster's figures, the dense part
is counted kernel by kernel, and the host by how often it calls on the GPU (`launches`).
`step_time` puts the three together and says what overlaps.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingConfig

from torchrec_adrec.distributed.constraints import constraints, ids_per_row, tables_of
from torchrec_adrec.distributed.optimizer import fuse_table_optimizer
from torchrec_adrec.distributed.plan_report import RankLoad, rank_loads
from torchrec_adrec.distributed.planner import (
    DENSE_SHARE,
    GIB,
    TablePlan,
    plan_tables,
)
from torchrec_adrec.distributed.sharders import sharders
from torchrec_adrec.distributed.sharding import codecs, meta_device
from torchrec_adrec.errors import ConfigError, PlanError
from torchrec_adrec.losses.device_blocks import BLOCK
from torchrec_adrec.planning import kernels, launches
from torchrec_adrec.planning.cluster import Cluster
from torchrec_adrec.planning.job import Job
from torchrec_adrec.planning.step_time import (
    LEAST_S,
    MEMORY_SHARE,
    PEAK_SHARE,
    StepTime,
)
from torchrec_adrec.planning.traffic import Traffic, traffic
from torchrec_adrec.schema import Schema, SequenceFeature, Side
from torchrec_adrec.tasks.retrieval import RetrievalTask

FLOAT = 4
STATE = 4 * FLOAT  # of a dense parameter: weight, gradient, AdamW's two moments
SAVED = 3 * FLOAT  # a checkpoint holds all of these but the gradient


@dataclass(frozen=True)
class DensePart:
    """What each rank holds and computes beside its tables.

    Attributes:
        parameters: their number.
        activations: bytes kept for backward, looked-up vectors and softmax included.
        kernels: of heads and losses in a step, forward and backward.
    """

    parameters: int
    activations: int
    kernels: list[kernels.Kernel]

    @property
    def memory(self) -> int:
        """Bytes of weights, gradients, AdamW's moments and activations."""
        return self.parameters * STATE + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a job needs on one cluster.

    Attributes:
        batch: rows of a step over all ranks.
        sent: bytes that ranks send in a step.
        time: estimated, of a step.
        links: milliseconds of a step's messages by what for, of the slowest rank.
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
    time: StepTime
    links: dict[str, float]
    checkpoint: int
    index: int | None

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step."""
        return self.time.total

    @property
    def dollars_per_hour(self) -> float:
        """Dollars an hour of all GPUs, at the price of `gpus.yaml` or the user."""
        return self.cluster.ranks * self.cluster.gpu.dollars

    @property
    def dollars_per_billion_rows(self) -> float:
        """Dollars of training alone: no evaluation, no export, no idle hour."""
        return self.dollars_per_hour / 3.6e6 * self.step_ms / self.batch * 1e9

    @property
    def fullest(self) -> int:
        """Bytes on the rank that holds most."""
        return max(load.memory for load in self.loads) + self.dense.memory


def estimate(job: Job, cluster: Cluster) -> Estimate:
    """Plan a training on one cluster and estimate its cost.

    Raises:
        PlanError: it does not fit, with the numbers.
        ConfigError: a batch that is no multiple of the ranks.
    """
    batch = job.batch
    if batch % cluster.ranks:
        raise ConfigError(
            f"batch {batch:,} is no multiple of the {cluster.ranks} GPUs; every GPU"
            " takes the same number of rows"
        )
    rows = batch // cluster.ranks
    # On the meta device: the tables of a cluster do not fit the machine that plans it.
    model = RetrievalTask(job.schema, job.retrieval, meta_device())
    fuse_table_optimizer(model, job.retrieval.optimizer)
    plan = _plan(model, job, cluster, rows)
    dense = dense_part(model, job, rows)
    _dense_fits(dense, cluster)
    width = job.retrieval.output_dim
    sent = traffic(plan, rows, dense.parameters, width, job.sharding.qcomm)
    links = {
        name: float(most.max()) / cluster.bandwidth * 1e3
        for name, most in sent.parts().items()
    }
    return Estimate(
        cluster=cluster,
        batch=batch,
        plan=plan,
        loads=rank_loads(plan),
        dense=dense,
        sent=sent,
        time=_time(plan, dense, links, job, cluster),
        links=links,
        checkpoint=_checkpoint(plan, dense),
        index=None if job.ads is None else _index(job.ads, job.index_shards, width),
    )


def _plan(model: nn.Module, job: Job, cluster: Cluster, rows: int) -> TablePlan:
    """Plan the tables with the very planner and choices that training uses."""
    topology, ids = cluster.topology(), ids_per_row(job.schema, model)
    allowed = constraints(tables_of(model), job.sharding, ids, topology)
    each = sharders(codecs(job.sharding.qcomm, None))
    return plan_tables(model, each, topology, allowed, rows)


def dense_part(model: RetrievalTask, job: Job, rows: int) -> DensePart:
    """Count what is not a table: linear layers, looked-up vectors, in-batch softmax.

    Args:
        model: its tables may stand on the meta device.
        job: what is trained.
        rows: of one rank.
    """
    width = job.retrieval.output_dim
    low = job.precision in ("bfloat16", "auto")
    anchors = ceil(rows * job.clicked)
    tables = tables_of(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    weights -= sum(table.num_embeddings * table.embedding_dim for table in tables)
    # A layer keeps its input, and its output once more behind activation and dropout.
    kept = sum(
        (layer.in_features + 2 * layer.out_features) * _places(name, job.schema)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    )
    ids = ids_per_row(job.schema, model)
    kept += 2 * sum(  # vectors and gradients
        table.embedding_dim
        * (ceil(ids[table.name]) if isinstance(table, EmbeddingConfig) else 1)
        for table in tables
    )
    # Every rank gathers all ads and both gradients, but holds the logits and slopes
    # of one block at a time.
    cells = min(BLOCK, anchors * job.batch)
    softmax = 2 * cells + 3 * job.batch * width
    work = kernels.heads(model.model, rows, low)
    work += kernels.softmax(anchors, job.batch, width, low)
    return DensePart(weights, (rows * kept + softmax) * FLOAT, work)


def _places(layer: str, schema: Schema) -> int:
    """Count how often a layer is computed a row: in a history's encoder, per item."""
    if schema.history is None or ".history." not in layer:
        return 1
    return schema.history.max_length


def _dense_fits(dense: DensePart, cluster: Cluster) -> None:
    """Refuse activations that do not fit beside the tables.

    Raises:
        PlanError: names the bytes needed and kept.
    """
    kept = int(cluster.gpu.memory * GIB * DENSE_SHARE)
    if dense.memory > kept:
        raise PlanError(
            f"the dense part needs {dense.memory / GIB:,.1f} GiB on each rank"
            f" (activations {dense.activations / GIB:,.1f}), {kept / GIB:,.1f} GiB"
            f" ({DENSE_SHARE:.0%} of {cluster.gpu.name}) are kept for it; take a"
            " smaller batch or more GPUs",
            dense.memory * cluster.ranks,
            kept * cluster.ranks,
        )


def _time(
    plan: TablePlan,
    dense: DensePart,
    links: dict[str, float],
    job: Job,
    cluster: Cluster,
) -> StepTime:
    """Put the parts of a step together.

    All ranks wait for the slowest, so the tables' times are those of the rank whose sum
    of TorchRec's estimates is largest.
    """
    parts = ("fwd_compute", "bwd_compute", "fwd_comms", "bwd_comms")
    by_rank = np.zeros((plan.topology.world_size, len(parts)))
    for shard in (shard for option in plan.chosen for shard in option.shards):
        by_rank[shard.rank] += [getattr(shard.perf, part) for part in parts]
    if cluster.ranks == 1:
        by_rank[:, 2:] = (
            0  # a rank without others sends nothing, but TorchRec counts it
        )
    slowest = by_rank[by_rank.sum(axis=1).argmax()].tolist()
    gpu, adam = cluster.gpu, kernels.adam(dense.parameters)
    products, memory = kernels.milliseconds(
        [*dense.kernels, *adam],
        gpu.peak(job.precision) * PEAK_SHARE,
        gpu.fp16 * 1e12 * PEAK_SHARE,
        gpu.hbm * 1e9 * MEMORY_SHARE,
        LEAST_S,
    )
    calls = launches.calls(
        dense_kernels=len(dense.kernels),
        adam_kernels=len(adam),
        lookups=launches.lookups(plan.chosen),
        ranks=cluster.ranks,
        parameters=dense.parameters,
    )
    return StepTime(
        calls=calls,
        products=products,
        memory=memory,
        tables=sum(slowest[:2]),
        communication=sum(slowest[2:]) + links["ads"] + links["dense"],
        copies=_row_bytes(job) * job.batch / cluster.ranks / gpu.host_bus / 1e6,
        ids=links["ids"],
    )


def _row_bytes(job: Job) -> float:
    """Bytes of a row on its way to a GPU.

    These are ids and lengths as int32, numbers, labels, the row's weight, the ad's id
    and log_q, and the anchors with their weights: see `batch.BatchLayout`.
    """
    schema = job.schema
    ids = sum(
        f.max_length + 1 if isinstance(f, SequenceFeature) else 1 for f in schema.bags
    )
    joined = schema.joined
    numbers = sum(len(joined.dense_names_of(side)) for side in Side)
    floats = numbers + len(schema.labels) + 2
    return (ids + floats) * FLOAT + 8 + 2 * FLOAT * job.clicked


def _checkpoint(plan: TablePlan, dense: DensePart) -> int:
    """Bytes of all weights and optimizer states; row-wise Adagrad has one a row."""
    tables = sum(int(option.tensor.numel()) for option in plan.chosen)
    shards = (shard for option in plan.chosen for shard in option.shards)
    rows = sum(int(shard.size[0]) for shard in shards)
    return (tables + rows) * FLOAT + dense.parameters * SAVED


def _index(ads: int, shards: int, width: int) -> int:
    """Bytes of the largest shard: a vector and an id of 64 bits per ad."""
    return ceil(ads / shards) * (width * FLOAT + 8)
