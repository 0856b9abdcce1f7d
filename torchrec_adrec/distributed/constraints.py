"""What the planner may choose from, table by table."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil

from torch import nn
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_adrec.config.train import ShardingConfig, TableSharding
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Schema, SequenceFeature, Side

DEFAULT = {"cpu": ("table_wise",), "cuda": ("table_wise", "row_wise")}


def tables_of(model: nn.Module) -> list[EmbeddingBagConfig]:
    """All tables of a model that is not sharded yet."""
    collections = [m for m in model.modules() if isinstance(m, EmbeddingBagCollection)]
    return [table for part in collections for table in part.embedding_bag_configs()]


def constraints(
    tables: Sequence[EmbeddingBagConfig],
    config: ShardingConfig,
    ids: Mapping[str, float],
    topology: Topology,
) -> dict[str, ParameterConstraints]:
    """The planner's constraints: what is not named here cannot be chosen.

    Args:
        ids: mean ids a row of a table, where it is not 1; the estimates need it.
        topology: the ranks that are planned for.

    Raises:
        ConfigError: a pattern that fits no table, or host memory asked for on CPUs.
    """
    _every_pattern_fits([table.name for table in tables], config)
    return {
        table.name: _one(table, config, ids.get(table.name, 1.0), topology)
        for table in tables
    }


def ids_per_row(schema: Schema) -> dict[str, float]:
    """Ids a row of the tables of histories: as many as a row may have."""
    return {
        f"{side}_{f.name}": float(f.max_length)
        for side in Side
        for f in schema.bags_of(side)
        if isinstance(f, SequenceFeature)
    }


def asked(name: str, config: ShardingConfig) -> TableSharding:
    """What the settings say of one table."""
    for pattern, table in config.tables.items():
        if fnmatchcase(name, pattern):
            return table
    return TableSharding()


def _every_pattern_fits(names: Sequence[str], config: ShardingConfig) -> None:
    for pattern in config.tables:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"sharding.tables: {pattern!r} fits no table; the tables are"
                f" {', '.join(names)}"
            )


def _one(
    table: EmbeddingBagConfig, config: ShardingConfig, ids: float, topology: Topology
) -> ParameterConstraints:
    wanted, device = asked(table.name, config), topology.compute_device
    types: Sequence[str] = wanted.types or config.types or _default(topology)
    if device == "cpu":
        if wanted.kernel != "fused":
            raise ConfigError(
                f"sharding.tables: {table.name} asks for kernel {wanted.kernel}, which"
                " only GPUs have; set fused"
            )
        types = _fills_every_rank(types, table.num_embeddings, topology)
    return ParameterConstraints(
        sharding_types=list(types),
        compute_kernels=[wanted.kernel],
        min_partition=wanted.min_partition,
        pooling_factors=[ids],
    )


def _default(topology: Topology) -> Sequence[str]:
    """Of one rank every cut is the whole table, but row_wise sorts the ids into ranks
    first and makes the host wait for the counts.
    """
    if topology.world_size == 1:
        return ("table_wise",)
    return DEFAULT[topology.compute_device]


def _fills_every_rank(
    types: Sequence[str], rows: int, topology: Topology
) -> Sequence[str]:
    """Without the cuts that leave a rank no row: FBGEMM 1.8.0 takes a rank without any
    weights for a GPU's and fails. A table that is left no other type stays whole.
    """
    ranks = {
        "row_wise": topology.world_size,
        "table_row_wise": topology.local_world_size,
    }
    each = {name: ceil(rows / count) for name, count in ranks.items()}
    kept = [t for t in types if t not in ranks or each[t] * (ranks[t] - 1) < rows]
    return kept or ["table_wise"]
