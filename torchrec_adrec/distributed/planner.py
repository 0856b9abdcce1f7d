"""TorchRec's planner with our choices: no table ends up where nobody asked for.

Needs no process group and no GPU: training plans the ranks it has with it, `adrec plan`
those of a cluster that is only described.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import (
    FixedPercentageStorageReservation,
)
from torchrec.distributed.planner.types import (
    Perf,
    PlannerError,
    PlannerErrorType,
    Shard,
    ShardingOption,
    Stats,
    Storage,
)
from torchrec.distributed.types import ParameterSharding, ShardingPlan
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_adrec.errors import PlanError

DENSE_SHARE = 0.15  # of a device's memory, kept free for the dense part and batches
TYPES = (
    *("table_wise", "row_wise", "table_row_wise"),
    *("column_wise", "table_column_wise"),
)
BY_ROWS = ("row_wise", "table_row_wise")
GIB = 2**30


class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """Offers the row-wise types on CPUs too, and leaves means as they are.

    TorchRec's own offers them to GPUs alone; its CPU kernels do them exactly
    (tests/distributed/test_sharding_types.py).

    Where one averaged table of a collection is cut by rows, TorchRec 1.8.0 divides the
    vectors of *all* its tables by their number of ids: those whose kernel has already
    averaged them are divided twice, and nothing says so. Only summed tables that are
    cut by rows are spared, so the tables that are not cut by rows are added to these.
    """

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        *args: Any,
        **more: Any,
    ) -> ShardedEmbeddingBagCollection:
        """Shard one collection."""
        sharded = super().shard(module, params, *args, **more)
        spared = sharded._pooling_type_to_rs_features[PoolingType.SUM.value]
        for table in module.embedding_bag_configs():
            if params[table.name].sharding_type not in BY_ROWS:
                spared.extend(table.feature_names)
        return sharded

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All types but data_parallel, which never trains here."""
        return list(TYPES)


@dataclass(frozen=True)
class TablePlan:
    """Where every table goes.

    Attributes:
        sharding: TorchRec's plan.
        chosen: one option a table, with the planner's memory and time of each shard.
        offered: all options that there were, by table.
        topology: the ranks that were planned for.
    """

    sharding: ShardingPlan
    chosen: tuple[ShardingOption, ...]
    offered: Mapping[str, tuple[ShardingOption, ...]]
    topology: Topology


def plan_tables(
    model: nn.Module,
    sharder: Sharder,
    topology: Topology,
    allowed: dict[str, ParameterConstraints],
    batch_size: int,
) -> TablePlan:
    """Choose type and ranks of every table by TorchRec's estimates of time and memory.

    Args:
        model: its tables may stand on the meta device.
        allowed: see `constraints`.
        batch_size: rows per rank.

    Raises:
        PlanError: the tables do not fit, with the bytes needed and there.
    """
    kept, idle = _Kept(), _Idle()
    for device in topology.devices:
        device.perf = idle
    enumerator = _InOrder(topology, batch_size, allowed)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=enumerator,
        storage_reservation=FixedPercentageStorageReservation(DENSE_SHARE),
        constraints=allowed,
        stats=kept,
    )
    try:
        plan = planner.plan(model, [sharder])
    except PlannerError as error:
        raise _refusal(error, enumerator.found, topology) from None
    offered = {o.name: tuple(enumerator.options_of(o.name)) for o in enumerator.found}
    return TablePlan(plan, tuple(kept.chosen), offered, topology)


class _InOrder(EmbeddingEnumerator):  # type: ignore[misc]
    """Options in an order of their own: TorchRec's is that of a set, which changes from
    process to process and decides between options that cost the same.

    The time of a shard follows from its size alone, and the shards of a table cut over
    1,024 ranks have one or two sizes: one of each is estimated. TorchRec 1.8.0 looks
    for its annotations anew at every shard, which was half of a plan's time.
    """

    found: Sequence[ShardingOption] = ()

    def enumerate(self, module: nn.Module, sharders: Any) -> list[ShardingOption]:
        """All options, by table and type."""
        options = super().enumerate(module, sharders)
        options.sort(key=lambda o: (o.fqn, TYPES.index(o.sharding_type)))
        self.found = options
        return list(options)

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """Give every shard its memory and time."""
        for estimator in self._estimators:
            if isinstance(estimator, EmbeddingStorageEstimator):
                estimator.estimate(sharding_options, self._sharder_data_map)
                continue
            every = [option.shards for option in sharding_options]
            for option in sharding_options:
                option.shards = list(_by_size(option.shards).values())
            estimator.estimate(sharding_options, self._sharder_data_map)
            for option, shards in zip(sharding_options, every, strict=True):
                estimated = _by_size(option.shards)
                option.shards = shards
                for shard in shards:
                    shard.perf = estimated[tuple(shard.size)].perf
        for option in sharding_options:
            option.shards = [
                _Shard(s.size, s.offset, s.storage, s.perf) for s in option.shards
            ]

    def options_of(self, table: str) -> list[ShardingOption]:
        """The options of one table."""
        return [option for option in self.found if option.name == table]


class _Shard(Shard):  # type: ignore[misc]
    """Copied in one step: nothing but its rank is ever changed. The planner copies all
    options and every better plan, down to the last number, which for 1,024 ranks took
    longer than to find them.
    """

    def __deepcopy__(self, memo: Any) -> "_Shard":
        return _Shard(self.size, self.offset, self.storage, self.perf, self.rank)


class _Idle(Perf):  # type: ignore[misc]
    """The time of a device that has nothing to do, which nobody changes either: what is
    added to it makes a new one. Copied for every device of every proposal.
    """

    def __init__(self) -> None:
        super().__init__(0, 0, 0, 0)

    def __deepcopy__(self, memo: Any) -> "_Idle":
        return self


def _by_size(shards: Sequence[Shard]) -> dict[tuple[int, ...], Shard]:
    return {tuple(shard.size): shard for shard in shards}


class _Kept(Stats):  # type: ignore[misc]
    """Keeps the chosen options in place of printing 300 columns of them."""

    def __init__(self) -> None:
        self.chosen: Sequence[ShardingOption] = ()

    def log(self, *args: Any, best_plan: Sequence[ShardingOption], **more: Any) -> None:
        """Called by the planner once it is done."""
        self.chosen = best_plan


def _refusal(
    error: PlannerError, options: Sequence[ShardingOption], topology: Topology
) -> PlanError:
    """The planner's error with its numbers, and what to do."""
    needed, there = _least(options, topology), _there(topology)
    if error.error_type == PlannerErrorType.INSUFFICIENT_STORAGE:
        why = "the tables need more memory than there is"
    else:
        why = "no way to cut the tables that is allowed fits the ranks"
    largest = sorted(options, key=lambda o: (-o.tensor.numel(), o.name))
    names = dict.fromkeys(
        f"{o.name} {o.tensor.numel() * 4 / GIB:,.1f} GiB" for o in largest
    )
    return PlanError(
        f"no sharding plan fits, {why}: {needed / GIB:,.1f} GiB needed,"
        f" {there / GIB:,.1f} GiB there on {topology.world_size} ranks"
        f" ({1 - DENSE_SHARE:.0%} of their memory); the largest tables:"
        f" {', '.join(list(names)[:5])}; take more ranks or more memory a rank, allow"
        " row_wise in sharding.types, or make the tables smaller",
        needed,
        there,
    )


def _least(options: Sequence[ShardingOption], topology: Topology) -> int:
    """Bytes of all tables, their optimizer state and buffers, each at its smallest."""
    least: dict[str, int] = {}
    for option in options:
        size = _bytes(option.total_storage, topology)
        least[option.name] = min(least.get(option.name, size), size)
    return sum(least.values())


def _there(topology: Topology) -> int:
    total = sum(_bytes(device.storage, topology) for device in topology.devices)
    return (
        int(total * (1 - DENSE_SHARE)) if topology.compute_device == "cuda" else total
    )


def _bytes(storage: Storage, topology: Topology) -> int:
    return int(storage.hbm if topology.compute_device == "cuda" else storage.ddr)
