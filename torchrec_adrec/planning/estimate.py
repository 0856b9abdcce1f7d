"""What training the towers needs on a cluster: memory, bytes and milliseconds a step.

Tables by TorchRec's planner with the cluster's figures; the dense part kernel by
kernel; the host by how often it calls on the GPU (`launches`). What overlaps:
`step_time`.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
from torch import nn

from torchrec_adrec.config.run import Config
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
from torchrec_adrec.schema import SequenceFeature
from torchrec_adrec.tasks.retrieval import RetrievalTask
from torchrec_adrec.tasks.task import build_task

FLOAT = 4
STATE = 4 * FLOAT  # a dense parameter's weight, gradient and AdamW's two moments
SAVED = 3 * FLOAT  # of these a checkpoint holds all but the gradient


@dataclass(frozen=True)
class DensePart:
    """All but the tables, on each rank.

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
    """One cluster, judged.

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
        """Of all GPUs, at the price that `gpus.yaml` or the user names."""
        return self.cluster.ranks * self.cluster.gpu.dollars

    @property
    def dollars_per_billion_rows(self) -> float:
        """Of training alone: no evaluation, no export, no idle hour."""
        return self.dollars_per_hour / 3.6e6 * self.step_ms / self.batch * 1e9

    @property
    def fullest(self) -> int:
        """Bytes on the rank that holds most."""
        return max(load.memory for load in self.loads) + self.dense.memory


def estimate(job: Job, cluster: Cluster) -> Estimate:
    """Plan and judge one cluster.

    Raises:
        PlanError: it does not fit, with the numbers.
        ConfigError: a batch that is no multiple of the ranks.
    """
    config, batch = job.config, job.batch
    if batch % cluster.ranks:
        raise ConfigError(
            f"batch {batch:,} is no multiple of the {cluster.ranks} GPUs; every GPU"
            " takes the same number of rows"
        )
    rows = batch // cluster.ranks
    model = build_task("retrieval", job.schema, config, meta_device())
    assert isinstance(model, RetrievalTask)
    fuse_table_optimizer(model, config.retrieval.optimizer)
    plan = _plan(model, job, cluster, rows)
    dense = dense_part(model, job, rows)
    _dense_fits(dense, cluster)
    width, qcomm = config.retrieval.output_dim, config.sharding.qcomm
    sent = traffic(plan, rows, dense.parameters, width, qcomm)
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
        index=None if job.ads is None else _index(config, job.ads),
    )


def _plan(model: nn.Module, job: Job, cluster: Cluster, rows: int) -> TablePlan:
    topology, config = cluster.topology(), job.config
    ids = ids_per_row(job.schema)
    allowed = constraints(tables_of(model), config.sharding, ids, topology)
    sharder = Sharder(qcomm_codecs_registry=codecs(config.sharding.qcomm, None))
    return plan_tables(model, sharder, topology, allowed, rows)


def dense_part(model: RetrievalTask, job: Job, rows: int) -> DensePart:
    """Count what is not a table: linear layers, looked-up vectors, in-batch softmax.

    Args:
        rows: of one rank.
    """
    width = job.config.retrieval.output_dim
    low = job.config.train.precision in ("bfloat16", "auto")
    anchors = ceil(rows * job.clicked)
    tables = tables_of(model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    weights -= sum(table.num_embeddings * table.embedding_dim for table in tables)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    # A layer keeps its input, and its output once more behind activation and dropout.
    kept = sum(layer.in_features + 2 * layer.out_features for layer in layers)
    kept += 2 * sum(table.embedding_dim for table in tables)  # vectors, gradients
    # Gathered ads and both gradients; logits and slopes of one block at a time.
    cells = min(BLOCK, anchors * job.batch)
    softmax = 2 * cells + 3 * job.batch * width
    work = kernels.heads(model.model, rows, low)
    work += kernels.softmax(anchors, job.batch, width, low)
    return DensePart(weights, (rows * kept + softmax) * FLOAT, work)


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


def _time(
    plan: TablePlan,
    dense: DensePart,
    links: dict[str, float],
    job: Job,
    cluster: Cluster,
) -> StepTime:
    """Tables: of the rank whose sum is largest, as TorchRec estimates it."""
    parts = ("fwd_compute", "bwd_compute", "fwd_comms", "bwd_comms")
    by_rank = np.zeros((plan.topology.world_size, len(parts)))
    for shard in (shard for option in plan.chosen for shard in option.shards):
        by_rank[shard.rank] += [getattr(shard.perf, part) for part in parts]
    if cluster.ranks == 1:
        by_rank[:, 2:] = 0  # TorchRec has a rank that is alone send to itself
    slowest = by_rank[by_rank.sum(axis=1).argmax()].tolist()
    gpu, adam = cluster.gpu, kernels.adam(dense.parameters)
    products, memory = kernels.milliseconds(
        [*dense.kernels, *adam],
        gpu.peak(job.config.train.precision) * PEAK_SHARE,
        gpu.fp16 * 1e12 * PEAK_SHARE,
        gpu.hbm * 1e9 * MEMORY_SHARE,
        LEAST_S,
    )
    called = launches.calls(
        dense_kernels=len(dense.kernels),
        adam_kernels=len(adam),
        lookups=launches.lookups(plan.chosen),
        ranks=cluster.ranks,
        parameters=dense.parameters,
    )
    return StepTime(
        calls=called,
        products=products,
        memory=memory,
        tables=sum(slowest[:2]),
        communication=sum(slowest[2:]) + links["ads"] + links["dense"],
        copies=_row_bytes(job) * job.batch / cluster.ranks / gpu.host_bus / 1e6,
        ids=links["ids"],
    )


def _row_bytes(job: Job) -> float:
    """Of a batch on its way to a GPU: ids and lengths int32, floats, the ad's id and
    log_q, the row's weight, and the anchors with their weights.
    """
    schema = job.schema
    ids = sum(
        f.max_length + 1 if isinstance(f, SequenceFeature) else 1 for f in schema.bags
    )
    floats = len(schema.dense) + len(schema.labels) + 2
    return (ids + floats) * FLOAT + 8 + 2 * FLOAT * job.clicked


def _checkpoint(plan: TablePlan, dense: DensePart) -> int:
    tables = sum(int(option.tensor.numel()) for option in plan.chosen)
    shards = (shard for option in plan.chosen for shard in option.shards)
    rows = sum(int(shard.size[0]) for shard in shards)
    return (tables + rows) * FLOAT + dense.parameters * SAVED


def _index(config: Config, ads: int) -> int:
    each = ceil(ads / config.index.shards)
    return each * (config.retrieval.output_dim * FLOAT + 8)
