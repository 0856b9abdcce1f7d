"""Says what the planner may choose from, table by table."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil

from torch import nn
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.modules.embedding_configs import (
    BaseEmbeddingConfig,
    EmbeddingConfig,
)
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingCollection,
)

from torchrec_adrec.config.sharding import ShardingConfig, TableSharding
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Schema, SequenceFeature, Side

COLLECTIONS = (EmbeddingBagCollection, EmbeddingCollection)
# What TorchRec has for a table that is looked up id by id, where a bag has another.
SEQUENCE_TYPES = {"table_row_wise": "row_wise", "table_column_wise": "column_wise"}
DEFAULT = {"cpu": ("table_wise",), "cuda": ("table_wise", "row_wise")}


def tables_of(model: nn.Module) -> list[BaseEmbeddingConfig]:
    """Return all tables of a model that is not sharded yet."""
    collections = [m for m in model.modules() if isinstance(m, COLLECTIONS)]
    return [table for part in collections for table in configs_of(part)]


def configs_of(collection: nn.Module) -> list[BaseEmbeddingConfig]:
    """Return the tables of a collection that is not sharded yet, in order."""
    if isinstance(collection, EmbeddingCollection):
        return list(collection.embedding_configs())
    assert isinstance(collection, EmbeddingBagCollection)
    return list(collection.embedding_bag_configs())


def constraints(
    tables: Sequence[BaseEmbeddingConfig],
    config: ShardingConfig,
    ids: Mapping[str, float],
    topology: Topology,
) -> dict[str, ParameterConstraints]:
    """Make the planner's constraints: what they do not name cannot be chosen.

    Args:
        tables: of the model.
        config: what the settings allow.
        ids: mean ids a row of a table, where it is not 1; the estimates need it.
        topology: the ranks that are planned for.

    Raises:
        ConfigError: a pattern that fits no table, or host memory asked for on CPUs.
    """
    _check_patterns([table.name for table in tables], config)
    return {
        table.name: _constraint(table, config, ids.get(table.name, 1.0), topology)
        for table in tables
    }


def ids_per_row(schema: Schema, model: nn.Module) -> dict[str, float]:
    """Return the ids a row of the tables of histories: as many as a row may have.

    Args:
        schema: of the data.
        model: tells whether the ads' item shares its table with the history.
    """
    ids = {
        f"{side}_{f.name}": float(f.max_length)
        for side in Side
        for f in schema.bags_of(side)
        if isinstance(f, SequenceFeature)
    }
    for table in tables_of(model):
        if isinstance(table, EmbeddingConfig) and schema.history is not None:
            ids[table.name] = schema.history.max_length + 1.0
    return ids


def settings_of(name: str, config: ShardingConfig) -> TableSharding:
    """Return what the settings say of one table: the first pattern that fits counts."""
    for pattern, table in config.tables.items():
        if fnmatchcase(name, pattern):
            return table
    return TableSharding()


def _check_patterns(names: Sequence[str], config: ShardingConfig) -> None:
    for pattern in config.tables:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"sharding.tables: {pattern!r} fits no table; the tables are"
                f" {', '.join(names)}"
            )


def _constraint(
    table: BaseEmbeddingConfig, config: ShardingConfig, ids: float, topology: Topology
) -> ParameterConstraints:
    settings, device = settings_of(table.name, config), topology.compute_device
    types: Sequence[str] = settings.types or config.types or _default(topology)
    if isinstance(table, EmbeddingConfig):
        types = [SEQUENCE_TYPES.get(name, name) for name in types]
    if device == "cpu":
        if settings.kernel != "fused":
            raise ConfigError(
                f"sharding.tables: {table.name} asks for kernel {settings.kernel},"
                " which only GPUs have; set fused"
            )
        types = _types_for_every_rank(types, table.num_embeddings, topology)
    return ParameterConstraints(
        sharding_types=list(types),
        compute_kernels=[settings.kernel],
        min_partition=settings.min_partition,
        pooling_factors=[ids],
    )


def _default(topology: Topology) -> Sequence[str]:
    # Of one rank every cut is the whole table, but row_wise sorts the ids into ranks
    # first and makes the host wait for the counts.
    if topology.world_size == 1:
        return ("table_wise",)
    return DEFAULT[topology.compute_device]


def _types_for_every_rank(
    types: Sequence[str], rows: int, topology: Topology
) -> Sequence[str]:
    """Leave out the types that would leave a rank without a row.

    FBGEMM 1.8.0 takes a rank without any weights for a GPU's and fails. A table that no
    other type is left for stays whole.
    """
    ranks = {
        "row_wise": topology.world_size,
        "table_row_wise": topology.local_world_size,
    }
    shard_rows = {name: ceil(rows / count) for name, count in ranks.items()}
    possible = [
        name
        for name in types
        # The last rank gets what the full shards of the others leave.
        if name not in ranks or shard_rows[name] * (ranks[name] - 1) < rows
    ]
    return possible or ["table_wise"]
