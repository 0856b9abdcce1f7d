"""Shards a model: decides which rank holds which rows of which table."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.model_parallel import (
    DataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import (
    ModuleSharder,
    QuantizedCommCodecs,
    ShardingEnv,
    ShardingPlan,
)

from torchrec_adrec.config.sharding import ShardingConfig
from torchrec_adrec.distributed.constraints import constraints, tables_of
from torchrec_adrec.distributed.plan_report import rank_lines, table_lines
from torchrec_adrec.distributed.planner import DENSE_SHARE, plan_tables
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.distributed.sharders import sharders
from torchrec_adrec.errors import ConfigError

log = logging.getLogger(__name__)


def shard(
    model: nn.Module,
    process: Process,
    config: ShardingConfig,
    batch_size: int,
    ids: Mapping[str, float],
) -> DistributedModelParallel:
    """Plan and shard all tables of a model, and wrap the rest for data parallelism.

    The tables may stand on the meta device: each rank then makes only its own rows.

    Args:
        model: its tables with their optimizer, see `fuse_table_optimizer`.
        process: this rank.
        config: what the planner may choose from.
        batch_size: rows per rank, which the planner's estimates need.
        ids: mean ids a row of a table, where it is not 1.

    Raises:
        ConfigError: the tables do not fit, or settings that name no table.
    """
    each = sharders(codecs(config.qcomm, process.device))
    plan = _common_plan(model, process, each, config, batch_size, ids)
    return DistributedModelParallel(
        module=model,
        device=process.device,
        plan=plan,
        sharders=each,
        data_parallel_wrapper=Unwrapped() if process.world_size == 1 else None,
    )


class Unwrapped(DataParallelWrapper):  # type: ignore[misc]
    """Leaves the dense part of a single rank as it is.

    There is nobody to average with, and DDP's buckets and hooks would take 4% of a
    step.
    """

    def wrap(
        self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device
    ) -> None:
        """Move the dense part to its device, as DDP's wrapper does."""
        dmp.module.to(device)


def _common_plan(
    model: nn.Module,
    process: Process,
    each: list[ModuleSharder[Any]],
    config: ShardingConfig,
    batch_size: int,
    ids: Mapping[str, float],
) -> ShardingPlan:
    """Let the first rank plan, and all ranks take its plan or raise its error."""
    # Planned on each rank, two plans could differ, and the ranks would wait for one
    # another for ever.
    result: list[ShardingPlan | ConfigError | None] = [None]
    if process.is_first:
        try:
            topology = topology_of(process)
            allowed = constraints(tables_of(model), config, ids, topology)
            plan = plan_tables(model, each, topology, allowed, batch_size)
            *tables, total = table_lines(plan, config)
            for line in tables:
                log.debug("plan | %s", line)  # `-v` shows them
            for line in (total, *rank_lines(plan)):
                log.info("plan | %s", line)
            result = [plan.sharding]
        except ConfigError as error:
            result = [error]
    dist.broadcast_object_list(result, 0)
    common = result[0]
    if isinstance(common, ConfigError):
        raise common
    return common


def topology_of(process: Process) -> Topology:
    """Describe the ranks of this process group, with the memory that they really have.

    TorchRec's own default is 32 GB of GPU memory and 128 GB of host memory a rank on
    any machine.
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    host, gpu = pages // process.local_world_size, None
    if process.device.type == "cuda":
        gpu = torch.cuda.get_device_properties(process.device).total_memory
    else:
        host = int(host * (1 - DENSE_SHARE))  # the planner reserves of GPUs alone
    return TopologyFactory.create_topology(
        TrainerConfig(
            world_size=process.world_size, local_world_size=process.local_world_size
        ),
        HardwareConfig(hbm_cap_bytes=gpu, ddr_cap_bytes=host),
        KernelConfig(compute_device=process.device.type),
    )


def codecs(
    qcomm: str, device: torch.device | None
) -> dict[str, QuantizedCommCodecs] | None:
    """Choose how looked-up vectors travel; their gradients always go in fp32.

    A gradient of one row is about 1 / batch_size; in fp16 it would keep a few bits or
    none. The codec's own loss scale does not help: it is taken off before the numbers
    are fp32 again.
    """
    if qcomm == "fp32":
        return None
    precision = QCommsConfig(
        forward_precision=CommType.FP16, backward_precision=CommType.FP32
    )
    registry: dict[str, QuantizedCommCodecs] = get_qcomm_codecs_registry(
        precision, device=device
    )
    return registry


def meta_device() -> torch.device:
    """Return the device on which tables are described before any rank holds them."""
    return torch.device("meta")
