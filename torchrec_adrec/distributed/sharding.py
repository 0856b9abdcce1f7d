"""Which rank holds which rows of which table."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.distributed.planner.storage_reservations import (
    FixedPercentageStorageReservation,
)
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ConfigError

DENSE_SHARE = 0.15  # of a device's memory, kept free for the dense part and batches

log = logging.getLogger(__name__)


def shard(
    model: nn.Module, process: Process, types: Sequence[str], batch_size: int
) -> DistributedModelParallel:
    """Plan and shard all tables of a model, and wrap the rest for data parallelism.

    The tables may stand on the meta device: each rank then makes only its own rows.

    Args:
        types: sharding types that the planner may choose from.
        batch_size: rows per rank, which the planner's estimates need.

    Raises:
        ConfigError: the tables do not fit.
    """
    sharders = [EmbeddingBagCollectionSharder()]
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=process.world_size,
            local_world_size=process.local_world_size,
            compute_device=process.device.type,
        ),
        batch_size=batch_size,
        storage_reservation=FixedPercentageStorageReservation(DENSE_SHARE),
        constraints=_constraints(model, types),
    )
    try:
        plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    except PlannerError as error:
        raise ConfigError(f"no sharding plan fits: {error}") from None
    if process.is_first:
        for line in report(model, plan):
            log.info("plan | %s", line)
    return DistributedModelParallel(
        module=model, device=process.device, plan=plan, sharders=sharders
    )


def _constraints(
    model: nn.Module, types: Sequence[str]
) -> dict[str, ParameterConstraints]:
    """No table may become data_parallel (it would never train with an optimizer inside
    backward, and nothing would say so) nor move to a cache unasked.
    """
    kernels = [EmbeddingComputeKernel.FUSED.value]
    return {
        table.name: ParameterConstraints(
            sharding_types=list(types), compute_kernels=kernels
        )
        for tables in _collections(model)
        for table in tables.embedding_bag_configs()
    }


def _collections(model: nn.Module) -> list[EmbeddingBagCollection]:
    return [m for m in model.modules() if isinstance(m, EmbeddingBagCollection)]


@dataclass(frozen=True)
class _Line:
    table: str
    rows: int
    dim: int
    sharding: str
    ranks: list[int]

    def __str__(self) -> str:
        size = self.rows * self.dim * 4 / 2**20
        where = ",".join(map(str, self.ranks))
        return (
            f"{self.table:<18} {self.rows:>12,} x {self.dim:<4} {self.sharding:<12}"
            f" ranks {where:<8} {size:>10,.2f} MB"
        )


def report(model: nn.Module, plan: ShardingPlan) -> list[str]:
    """One line a table: rows, width, sharding type, ranks, size; then the total."""
    configs = {
        t.name: t for m in _collections(model) for t in m.embedding_bag_configs()
    }
    lines = [
        _Line(
            name,
            configs[name].num_embeddings,
            configs[name].embedding_dim,
            sharding.sharding_type,
            sorted(set(sharding.ranks)),
        )
        for module in plan.plan.values()
        for name, sharding in module.items()
    ]
    total = sum(line.rows * line.dim * 4 for line in lines) / 2**20
    return [*map(str, lines), f"{len(lines)} tables, {total:,.2f} MB of weights"]


def meta_device() -> torch.device:
    """Where tables are described before any rank holds them."""
    return torch.device("meta")
