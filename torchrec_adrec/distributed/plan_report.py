"""A sharding plan in lines of at most 110 columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torchrec.distributed.planner.types import ShardingOption

from torchrec_adrec.distributed.planner import TablePlan
from torchrec_adrec.train_config import ShardingConfig

WIDTH = 110
FLOAT = 4  # bytes; the row-wise optimizer keeps one for each row of a shard
SHOWN = 8  # ranks; of more, the fullest, the slowest and the emptiest


@dataclass(frozen=True)
class RankLoad:
    """What one rank holds and does of the tables.

    Attributes:
        weights, optimizer, buffers: bytes; buffers are the ids and vectors that the
            planner expects in flight.
        ms: the planner's estimate of lookup, update and their communication.
    """

    rank: int
    weights: int
    optimizer: int
    buffers: int
    ms: float

    @property
    def memory(self) -> int:
        """Bytes of all three."""
        return self.weights + self.optimizer + self.buffers


def rank_loads(plan: TablePlan) -> list[RankLoad]:
    """The load of every rank, in order."""
    kind = "hbm" if plan.topology.compute_device == "cuda" else "ddr"
    size = plan.topology.world_size
    weights, optimizer, memory, ms = ([0.0] * size for _ in range(4))
    for shard in (shard for option in plan.chosen for shard in option.shards):
        rows, columns = shard.size
        weights[shard.rank] += rows * columns * FLOAT
        optimizer[shard.rank] += rows * FLOAT if columns else 0
        memory[shard.rank] += getattr(shard.storage, kind)
        ms[shard.rank] += shard.perf.total
    # Where rows live in host memory the planner's bytes are those of the cache alone.
    rest = (
        max(m - w - o, 0) for m, w, o in zip(memory, weights, optimizer, strict=True)
    )
    rows = zip(weights, optimizer, rest, ms, strict=True)
    return [
        RankLoad(rank, int(w), int(o), int(b), t)
        for rank, (w, o, b, t) in enumerate(rows)
    ]


def table_lines(plan: TablePlan, config: ShardingConfig) -> list[str]:
    """One line a table: rows, width, type, kernel, ranks, bytes and why; the total."""
    head = ("table", "rows", "dim", "type", "kernel", "ranks", "weights", "why")
    rows = [head, *(_row(option, plan, config) for option in plan.chosen)]
    total = sum(option.tensor.numel() * FLOAT for option in plan.chosen)
    tail = f"{len(plan.chosen)} tables, {in_bytes(total)} of weights"
    return [*columns(rows, right=(1, 2, 6)), tail]


def rank_lines(plan: TablePlan) -> list[str]:
    """One line a rank: memory of its tables and the estimated milliseconds."""
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
    """Weights, optimizer state, buffers and their sum, in bytes."""
    return load.weights, load.optimizer, load.buffers, load.memory


def named(loads: Sequence[RankLoad]) -> list[tuple[str, RankLoad]]:
    """All ranks, or of many the three that tell most."""
    if len(loads) <= SHOWN:
        return [(str(load.rank), load) for load in loads]
    fullest = max(loads, key=lambda load: load.memory)
    slowest = max(loads, key=lambda load: load.ms)
    emptiest = min(loads, key=lambda load: load.memory)
    return [
        (f"{load.rank} ({what})", load)
        for what, load in (
            ("fullest", fullest),
            ("slowest", slowest),
            ("emptiest", emptiest),
        )
    ]


def columns(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of words side by side, cut at `WIDTH`; `right`: columns of numbers."""
    rows = list(rows)
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        words = [
            word.rjust(w) if i in right else word.ljust(w)
            for i, (word, w) in enumerate(zip(row, wide, strict=True))
        ]
        lines.append("  ".join(words).rstrip()[:WIDTH])
    return lines


def in_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _row(
    option: ShardingOption, plan: TablePlan, config: ShardingConfig
) -> tuple[str, ...]:
    rows, dim = option.tensor.shape
    where = sorted({shard.rank for shard in option.shards if shard.size[0]})
    return (
        option.name,
        f"{rows:,}",
        str(dim),
        option.sharding_type,
        option.compute_kernel,
        _ranks(where, plan.topology.world_size),
        in_bytes(option.tensor.numel() * FLOAT),
        _why(option, plan, config),
    )


def _ranks(ranks: Sequence[int], world_size: int) -> str:
    if len(ranks) == world_size > 1:
        return f"all {world_size}"
    if len(ranks) > 2 and ranks[-1] - ranks[0] + 1 == len(ranks):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks)) if len(ranks) < 4 else f"{len(ranks)} ranks"


def _why(option: ShardingOption, plan: TablePlan, config: ShardingConfig) -> str:
    offered = plan.offered[option.name]
    if len(offered) == 1:
        special = any(fnmatchcase(option.name, pattern) for pattern in config.tables)
        return "sharding.tables asks for it" if special else "the only type allowed"
    faster = sum(other.total_perf < option.total_perf for other in offered)
    if not faster:
        return f"fastest of {len(offered)}"
    return f"{faster + 1}. of {len(offered)} by time: balance or memory"
