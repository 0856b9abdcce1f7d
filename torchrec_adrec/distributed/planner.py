"""TorchRec's planner with our choices: no table ends up where nobody asked for it.

It needs no process group and no GPU: training plans the ranks that it has, `adrec plan`
those of a cluster that is only described.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
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
from torchrec.distributed.types import (
    ModuleSharder,
    ShardingPlan,
)

from torchrec_adrec.distributed.sharders import TYPES
from torchrec_adrec.distributed.torchrec_internals import (
    estimators,
    sharder_data,
)
from torchrec_adrec.errors import PlanError

DENSE_SHARE = 0.15  # of a device's memory, kept free for the dense part and batches
GIB = 2**30


@dataclass(frozen=True)
class TablePlan:
    """Says where every table goes.

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
    sharders: list[ModuleSharder[Any]],
    topology: Topology,
    allowed: dict[str, ParameterConstraints],
    batch_size: int,
) -> TablePlan:
    """Choose type and ranks of every table by TorchRec's estimates of time and memory.

    Args:
        model: its tables may stand on the meta device.
        sharders: of its collections.
        topology: the ranks.
        allowed: see `constraints`.
        batch_size: rows per rank.

    Raises:
        PlanError: the tables do not fit, with the bytes needed and there.
    """
    # The planner shows the options that it chose to its statistics alone.
    choice, idle = _PlanRecorder(), _Idle()
    for device in topology.devices:
        device.perf = idle
    enumerator = OrderedEnumerator(topology, batch_size, allowed)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=enumerator,
        storage_reservation=FixedPercentageStorageReservation(DENSE_SHARE),
        constraints=allowed,
        stats=choice,
    )
    try:
        plan = planner.plan(model, sharders)
    except PlannerError as error:
        raise _plan_error(error, enumerator.options, topology) from None
    offered = {o.name: tuple(enumerator.options_of(o.name)) for o in enumerator.options}
    return TablePlan(plan, tuple(choice.chosen), offered, topology)


class OrderedEnumerator(EmbeddingEnumerator):  # type: ignore[misc]
    """Lists the options in an order of their own, and estimates each size once.

    TorchRec's order is that of a set: it changes from process to process and decides
    between options that cost the same.

    The time of a shard follows from its size alone, and the shards of a table that is
    cut over 1,024 ranks have one or two sizes: one of each is estimated. TorchRec 1.8.0
    looks up its annotations anew for every shard, which was half of a plan's time.
    """

    options: Sequence[ShardingOption] = ()

    def enumerate(self, module: nn.Module, sharders: Any) -> list[ShardingOption]:
        """List all options, by table and type."""
        options = super().enumerate(module, sharders)
        options.sort(key=lambda o: (o.fqn, TYPES.index(o.sharding_type)))
        self.options = options
        return list(options)

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """Give every shard its memory and time."""
        sharders = sharder_data(self)
        for estimator in estimators(self):
            if isinstance(estimator, EmbeddingStorageEstimator):
                estimator.estimate(sharding_options, sharders)
            else:
                _estimate_by_size(estimator, sharding_options, sharders)
        for option in sharding_options:
            option.shards = [
                _Shard(s.size, s.offset, s.storage, s.perf) for s in option.shards
            ]

    def options_of(self, table: str) -> list[ShardingOption]:
        """Return the options of one table."""
        return [option for option in self.options if option.name == table]


def _estimate_by_size(
    estimator: Any, options: Sequence[ShardingOption], sharders: Any
) -> None:
    """Estimate one shard of each size, and give its time to all shards of that size."""
    all_shards = [option.shards for option in options]
    for option in options:
        option.shards = list(_by_size(option.shards).values())
    estimator.estimate(options, sharders)
    for option, shards in zip(options, all_shards, strict=True):
        estimated = _by_size(option.shards)
        option.shards = shards
        for shard in shards:
            shard.perf = estimated[tuple(shard.size)].perf


class _Shard(Shard):  # type: ignore[misc]
    """A shard that is copied in one step: nothing but its rank is ever changed.

    The planner copies all options and every better plan, down to the last number, which
    for 1,024 ranks took longer than to find them.
    """

    def __deepcopy__(self, memo: Any) -> "_Shard":
        return _Shard(self.size, self.offset, self.storage, self.perf, self.rank)


class _Idle(Perf):  # type: ignore[misc]
    """The time of a device that has nothing to do, one object for all devices.

    Nobody changes it, for adding to it makes a new one, so it need not be copied for
    every device of every proposal.
    """

    def __init__(self) -> None:
        super().__init__(0, 0, 0, 0)

    def __deepcopy__(self, memo: Any) -> "_Idle":
        return self


def _by_size(shards: Sequence[Shard]) -> dict[tuple[int, ...], Shard]:
    return {tuple(shard.size): shard for shard in shards}


class _PlanRecorder(Stats):  # type: ignore[misc]
    """Keeps the chosen options, where TorchRec's own prints 300 columns of them."""

    def __init__(self) -> None:
        self.chosen: Sequence[ShardingOption] = ()

    def log(
        self, *args: Any, best_plan: Sequence[ShardingOption], **kwargs: Any
    ) -> None:
        """Take the plan; the planner calls this once it is done."""
        self.chosen = best_plan


def _plan_error(
    error: PlannerError, options: Sequence[ShardingOption], topology: Topology
) -> PlanError:
    """The planner's error with its numbers, and what to do."""
    needed, available = _needed_bytes(options, topology), _available_bytes(topology)
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
        f" {available / GIB:,.1f} GiB there on {topology.world_size} ranks"
        f" ({1 - DENSE_SHARE:.0%} of their memory); the largest tables:"
        f" {', '.join(list(names)[:5])}; take more ranks or more memory a rank, allow"
        " row_wise in sharding.types, or make the tables smaller",
        needed,
        available,
    )


def _needed_bytes(options: Sequence[ShardingOption], topology: Topology) -> int:
    """Bytes of all tables, their optimizer state and buffers, each at its smallest."""
    smallest: dict[str, int] = {}
    # An option of each type is listed for a table: only the smallest one is needed.
    for option in options:
        size = _bytes(option.total_storage, topology)
        smallest[option.name] = min(smallest.get(option.name, size), size)
    return sum(smallest.values())


def _available_bytes(topology: Topology) -> int:
    """Bytes for tables of all devices; of GPUs the planner's reservation is taken off,
    CPUs come with theirs already taken off (`sharding.topology_of`).
    """
    total = sum(_bytes(device.storage, topology) for device in topology.devices)
    return (
        int(total * (1 - DENSE_SHARE)) if topology.compute_device == "cuda" else total
    )


def _bytes(storage: Storage, topology: Topology) -> int:
    return int(storage.hbm if topology.compute_device == "cuda" else storage.ddr)
