"""What must hold of a sharded model before its first step.

A table without an optimizer never trains, one with two trains twice, and a collection
whose features are in another order than the KJT's reads the rows of other tables. None
of these raises an error later, so a model that is wrong here does not start.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ParameterSharding, ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.optim.keyed import CombinedOptimizer

from torchrec_adrec.batch import ITEMS
from torchrec_adrec.distributed.constraints import COLLECTIONS, configs_of
from torchrec_adrec.distributed.torchrec_internals import in_backward_optimizers
from torchrec_adrec.schema import Schema, Side

Collections = Mapping[str, Sequence[BaseEmbeddingConfig]]
"""The path of each collection in its model -> its tables, in order."""


def collections_of(model: nn.Module) -> Collections:
    """The tables of each collection by its path, before the model is sharded.

    Raises:
        AssertionError: a table got no optimizer, or two. Once it is sharded nobody
            could tell: the kernel then trains it by a plain SGD of its own.
    """
    collections = {}
    for path, module in model.named_modules():
        if isinstance(module, COLLECTIONS):
            for name, table in module.named_parameters():
                count = len(in_backward_optimizers(table))
                assert count == 1, (
                    f"{path}.{name}: {count} optimizers inside backward, expected one"
                )
            collections[path] = tuple(configs_of(module))
    return collections


def audit(
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    collections: Collections,
    schema: Schema,
) -> None:
    """Check all of it. Collective: every rank calls it.

    Args:
        model: sharded.
        optimizer: of the tables and of everything else.
        collections: what `collections_of` returned before the model was sharded.
        schema: whose sides say the order of the features.

    Raises:
        AssertionError: names the parameter, table or collection at fault.
    """
    check_feature_order(collections, schema)
    check_plan_is_whole(model.plan, collections)
    check_optimizers(model, optimizer)


def check_feature_order(collections: Collections, schema: Schema) -> None:
    """Check that each collection has features of one side, in the key order."""
    orders = [[f.name for f in schema.bags_of(side)] for side in Side]
    orders.append([ITEMS])
    for path, tables in collections.items():
        features = [name for table in tables for name in table.feature_names]
        # Vectors may read some features of a side, in the side's order all the same.
        in_order = [[n for n in order if n in features] for order in orders]
        assert features in in_order, (
            f"{path} reads its features in the order {features}, the schema's sides"
            f" have {orders}: its rows would be those of other features"
        )


def check_plan_is_whole(plan: ShardingPlan, collections: Collections) -> None:
    """Check that the shards of each table add up to it, and none is data_parallel."""
    for path, tables in collections.items():
        planned = plan.get_plan_for_module(path) or {}
        for table in tables:
            assert table.name in planned, f"{path}.{table.name} is not in the plan"
            _check_shards(f"{path}.{table.name}", table, planned[table.name])


def _check_shards(
    name: str, table: BaseEmbeddingConfig, sharding: ParameterSharding
) -> None:
    assert sharding.sharding_type != ShardingType.DATA_PARALLEL.value, (
        f"{name} is data_parallel: under an optimizer inside backward it never trains"
    )
    actual = sum(prod(shard.shard_sizes) for shard in sharding.sharding_spec.shards)
    expected = table.num_embeddings * table.embedding_dim
    assert actual == expected, f"{name}: the shards hold {actual} of {expected} weights"


def check_optimizers(
    model: DistributedModelParallel, optimizer: CombinedOptimizer
) -> None:
    """Check that every parameter has exactly one optimizer, where its rows are."""
    local_tables = set(model.fused_optimizer.params)
    tables_by_rank: list[set[str]] = [set() for _ in range(dist.get_world_size())]
    dist.all_gather_object(tables_by_rank, local_tables)
    tables = set().union(*tables_by_rank)
    parameters = dict(model.named_parameters())
    stepped = dict(optimizer.params)
    dense = {name: stepped[name] for name in stepped.keys() - local_tables}
    twice = dense.keys() & tables
    assert not twice, f"two optimizers: {sorted(twice)}"
    missing = parameters.keys() - dense.keys() - tables
    assert not missing, f"no optimizer: {sorted(missing)}"
    # A fused optimizer that nobody steps still trains, inside backward, but at the
    # learning rate of the first step.
    idle = local_tables - stepped.keys()
    assert not idle, (
        f"never stepped: {sorted(idle)}; their learning rate would not follow its"
        " schedule"
    )
    stale = [n for n in dense if dense[n] is not parameters.get(n)]
    assert not stale, f"the optimizer steps copies, not the parameters: {sorted(stale)}"
