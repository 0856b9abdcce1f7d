"""What the planner may choose from, table by table."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torchrec.distributed.planner import ParameterConstraints
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Schema, SequenceFeature, Side
from torchrec_adrec.train_config import ShardingConfig, TableSharding

DEFAULT = {"cpu": ("table_wise",), "cuda": ("table_wise", "row_wise")}


def tables_of(model: nn.Module) -> list[EmbeddingBagConfig]:
    """All tables of a model that is not sharded yet."""
    collections = [m for m in model.modules() if isinstance(m, EmbeddingBagCollection)]
    return [table for part in collections for table in part.embedding_bag_configs()]


def constraints(
    names: Sequence[str], config: ShardingConfig, ids: Mapping[str, float], device: str
) -> dict[str, ParameterConstraints]:
    """The planner's constraints: what is not named here cannot be chosen.

    Args:
        names: of all tables.
        ids: mean ids a row of a table, where it is not 1; the estimates need it.
        device: `cpu` or `cuda`.

    Raises:
        ConfigError: a pattern that fits no table, or host memory asked for on CPUs.
    """
    _every_pattern_fits(names, config)
    return {name: _one(name, config, ids.get(name, 1.0), device) for name in names}


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
    name: str, config: ShardingConfig, ids: float, device: str
) -> ParameterConstraints:
    table = asked(name, config)
    if device == "cpu" and table.kernel != "fused":
        raise ConfigError(
            f"sharding.tables: {name} asks for kernel {table.kernel}, which only GPUs"
            " have; set fused"
        )
    return ParameterConstraints(
        sharding_types=list(table.types or config.types or DEFAULT[device]),
        compute_kernels=[table.kernel],
        min_partition=table.min_partition,
        pooling_factors=[ids],
    )
