"""Prints a sharding plan in lines of at most 110 columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.types import Shard, ShardingOption

from torchrec_adrec.config.sharding import ShardingConfig
from torchrec_adrec.distributed.constraints import settings_of
from torchrec_adrec.distributed.planner import TablePlan

WIDTH = 110
FLOAT = 4  # bytes; the row-wise optimizer keeps one for each row of a shard
SHOWN = 8  # ranks; of more, the fullest, the slowest and the emptiest


@dataclass(frozen=True)
class RankLoad:
    """What one rank holds and does of the tables.

    Attributes:
        rank: its number.
        weights, optimizer, buffers: bytes of the rank's own memory; buffers are the
            ids and vectors that the planner expects in flight, and caches of rows that
            live in host memory.
        host: bytes of host memory beside a GPU.
        ms: the planner's estimate of lookup, update and their communication.
    """

    rank: int
    weights: int
    optimizer: int
    buffers: int
    host: int
    ms: float

    @property
    def memory(self) -> int:
        """Bytes of all three."""
        return self.weights + self.optimizer + self.buffers


def rank_loads(plan: TablePlan) -> list[RankLoad]:
    """Return the load of every rank, in order."""
    loads = [
        RankLoad(rank, 0, 0, 0, 0, 0.0) for rank in range(plan.topology.world_size)
    ]
    for option in plan.chosen:
        for shard in option.shards:
            loads[shard.rank] = _with_shard(loads[shard.rank], shard, option, plan)
    return loads


def _with_shard(
    load: RankLoad, shard: Shard, option: ShardingOption, plan: TablePlan
) -> RankLoad:
    gpu = plan.topology.compute_device == "cuda"
    # Of rows in host memory the planner's bytes of the device are those of their cache.
    is_local = not gpu or option.compute_kernel == EmbeddingComputeKernel.FUSED.value
    rows, width = shard.size if is_local else (0, 0)
    weights, optimizer = rows * width * FLOAT, rows * FLOAT
    memory = shard.storage.hbm if gpu else shard.storage.ddr
    return RankLoad(
        load.rank,
        load.weights + weights,
        load.optimizer + optimizer,
        load.buffers + max(memory - weights - optimizer, 0),
        load.host + (shard.storage.ddr if gpu else 0),
        load.ms + shard.perf.total,
    )


def table_lines(plan: TablePlan, config: ShardingConfig) -> list[str]:
    """Return a line for each table, with the reason of its type, and the total."""
    head = ("table", "rows", "dim", "type", "kernel", "ranks", "weights", "why")
    rows = [head, *(_row(option, plan, config) for option in plan.chosen)]
    total = sum(option.tensor.numel() * FLOAT for option in plan.chosen)
    tail = (
        f"{len(plan.chosen)} tables, {in_bytes(total)} of weights; a slower option is"
        " taken where ranks are then filled more evenly"
    )
    return [*columns(rows, right=(1, 2, 6)), tail]


def rank_lines(plan: TablePlan) -> list[str]:
    """Return a line for each rank: memory of its tables, estimated milliseconds."""
    loads = rank_loads(plan)
    head = ("rank", "weights", "optimizer", "buffers", "memory", "estimated ms")
    rows = [
        head,
        *(
            (name, *map(in_bytes, sizes(load)), f"{load.ms:.2f}")
            for name, load in named(loads)
        ),
    ]
    return columns(rows, right=(1, 2, 3, 4, 5))


def sizes(load: RankLoad) -> tuple[int, int, int, int]:
    """Return weights, optimizer state, buffers and their sum, in bytes."""
    return load.weights, load.optimizer, load.buffers, load.memory


def named(loads: Sequence[RankLoad]) -> list[tuple[str, RankLoad]]:
    """Name all ranks, or of many the fullest, the slowest and the emptiest."""
    if len(loads) <= SHOWN:
        return [(str(load.rank), load) for load in loads]
    extremes = (
        ("fullest", max(loads, key=lambda load: load.memory)),
        ("slowest", max(loads, key=lambda load: load.ms)),
        ("emptiest", min(loads, key=lambda load: load.memory)),
    )
    labels: dict[int, list[str]] = {}  # one rank may be two of them
    for label, load in extremes:
        labels.setdefault(load.rank, []).append(label)
    return [
        (f"{rank} ({', '.join(names)})", loads[rank]) for rank, names in labels.items()
    ]


def columns(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Set rows of text in columns; what is wider than `WIDTH` is cut off.

    Args:
        rows: all of one length.
        right: columns of numbers, which are set to the right.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip()[:WIDTH])
    return lines


def in_bytes(count: float) -> str:
    """Format a number of bytes in the unit that suits it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _row(
    option: ShardingOption, plan: TablePlan, config: ShardingConfig
) -> tuple[str, ...]:
    rows, dim = option.tensor.shape
    ranks = sorted({shard.rank for shard in option.shards if shard.size[0]})
    return (
        option.name,
        f"{rows:,}",
        str(dim),
        option.sharding_type,
        option.compute_kernel,
        _ranks(ranks, plan.topology.world_size),
        in_bytes(option.tensor.numel() * FLOAT),
        _reason(option, plan, config),
    )


def _ranks(ranks: Sequence[int], world_size: int) -> str:
    if len(ranks) == world_size > 1:
        return f"all {world_size}"
    if len(ranks) > 2 and ranks[-1] - ranks[0] + 1 == len(ranks):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks)) if len(ranks) < 4 else f"{len(ranks)} ranks"


def _reason(option: ShardingOption, plan: TablePlan, config: ShardingConfig) -> str:
    offered = plan.offered[option.name]
    requested = settings_of(option.name, config).types or config.types
    if requested and option.sharding_type not in requested:
        return "too few rows for every rank"
    if len(offered) == 1:
        is_named = any(fnmatchcase(option.name, pattern) for pattern in config.tables)
        return "sharding.tables asks for it" if is_named else "the only type allowed"
    faster = sum(other.total_perf < option.total_perf for other in offered)
    if not faster:
        return f"fastest of {len(offered)}"
    return f"no. {faster + 1} of {len(offered)} by time"
