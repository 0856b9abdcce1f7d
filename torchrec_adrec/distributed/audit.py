"""What must hold of a sharded model before its first step; each would go unnoticed.

A table without optimizer never trains, one with two trains twice, a collection whose
features stand in another order than the KJT's reads other tables' rows: none of these
raises an error later. So a model that is wrong here does not start.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ParameterSharding, ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer

from torchrec_adrec.schema import Schema, Side

Collections = Mapping[str, Sequence[EmbeddingBagConfig]]


def collections_of(model: nn.Module) -> Collections:
    """The tables of each collection by its path, before the model is sharded.

    Raises:
        AssertionError: a table got no optimizer, or two. Once it is sharded nobody
            could tell: the kernel then trains it by a plain SGD of its own.
    """
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingBagCollection):
            for name, table in module.named_parameters():
                found = len(getattr(table, "_in_backward_optimizers", ()))
                assert found == 1, (
                    f"{path}.{name}: {found} optimizers inside backward, expected one"
                )
    return {
        path: tuple(module.embedding_bag_configs())
        for path, module in model.named_modules()
        if isinstance(module, EmbeddingBagCollection)
    }


def audit(
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    collections: Collections,
    schema: Schema,
) -> None:
    """Check all of it. Collective: every rank calls it.

    Raises:
        AssertionError: names the parameter, table or collection at fault.
    """
    keys_in_order(collections, schema)
    every_table_planned(model.plan, collections)
    one_optimizer_each(model, optimizer)


def keys_in_order(collections: Collections, schema: Schema) -> None:
    """The features of each collection are a side's, in the one key order."""
    orders = [[f.name for f in schema.bags_of(side)] for side in Side]
    for path, tables in collections.items():
        found = [name for table in tables for name in table.feature_names]
        assert found in orders, (
            f"{path} reads its features in the order {found}, the schema's sides have"
            f" {orders}: its rows would be those of other features"
        )


def every_table_planned(plan: ShardingPlan, collections: Collections) -> None:
    """Each table is cut into shards that add up to it, none of them data_parallel."""
    for path, tables in collections.items():
        planned = plan.get_plan_for_module(path) or {}
        for table in tables:
            assert table.name in planned, f"{path}.{table.name} is not in the plan"
            _whole(f"{path}.{table.name}", table, planned[table.name])


def _whole(name: str, table: EmbeddingBagConfig, found: ParameterSharding) -> None:
    assert found.sharding_type != ShardingType.DATA_PARALLEL.value, (
        f"{name} is data_parallel: under an optimizer inside backward it never trains"
    )
    held = sum(prod(shard.shard_sizes) for shard in found.sharding_spec.shards)
    wanted = table.num_embeddings * table.embedding_dim
    assert held == wanted, f"{name}: the shards hold {held} of {wanted} weights"


def one_optimizer_each(
    model: DistributedModelParallel, optimizer: CombinedOptimizer
) -> None:
    """Every parameter has exactly one optimizer, on the rank that holds it."""
    own = set(model.fused_optimizer.params)
    held: list[set[str]] = [set() for _ in range(dist.get_world_size())]
    dist.all_gather_object(held, own)
    fused = set().union(*held)
    parameters = dict(model.named_parameters())
    stepped = dict(optimizer.params)
    dense = {name: stepped[name] for name in stepped.keys() - own}
    assert not dense.keys() & fused, f"two optimizers: {sorted(dense.keys() & fused)}"
    missing = parameters.keys() - dense.keys() - fused
    assert not missing, f"no optimizer: {sorted(missing)}"
    assert own <= stepped.keys(), (
        f"never stepped: {sorted(own - stepped.keys())}; their learning rate would not"
        " follow its schedule"
    )
    stale = [n for n in dense if dense[n] is not parameters.get(n)]
    assert not stale, f"the optimizer steps copies, not the parameters: {sorted(stale)}"
