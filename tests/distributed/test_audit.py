"""Faults that nothing else would show: each is planted in a model that is right."""

from collections.abc import Iterator

import pytest
import torch
from fifty_steps import SCHEMA, config
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from torchrec_adrec.distributed.audit import Collections, audit, collections_of
from torchrec_adrec.distributed.optimizer import build_optimizer, fuse_table_optimizer
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.distributed.sharding import meta_device, shard
from torchrec_adrec.tasks.task import build_task

SETTINGS = config("sharding.types=[row_wise]")
OPTIMIZER = SETTINGS.retrieval.optimizer
Sound = tuple[DistributedModelParallel, CombinedOptimizer, Collections]


@pytest.fixture
def process() -> Iterator[Process]:
    with process_group("cpu") as process:
        yield process


@pytest.fixture
def sound(process: Process) -> Sound:
    model = build_task("retrieval", SCHEMA, SETTINGS, meta_device())
    fuse_table_optimizer(model, OPTIMIZER)
    collections = collections_of(model)
    sharded = shard(model, process, SETTINGS.sharding, 64, {})
    return sharded, build_optimizer(sharded, OPTIMIZER, torch.zeros(())), collections


def stepping(parameters: dict[str, nn.Parameter]) -> KeyedOptimizerWrapper:
    return KeyedOptimizerWrapper(
        parameters, lambda weights: torch.optim.SGD(weights, lr=0.1)
    )


def dense_of(sound: Sound) -> dict[str, nn.Parameter]:
    model, _, _ = sound
    tables = set(model.fused_optimizer.params)
    return {n: p for n, p in model.named_parameters() if n not in tables}


def test_a_sound_model_passes(sound: Sound) -> None:
    audit(*sound, SCHEMA)


def test_a_dense_parameter_without_optimizer(sound: Sound) -> None:
    model, _, collections = sound
    dense = dense_of(sound)
    del dense["model.calibration.bias"]
    optimizer = CombinedOptimizer([model.fused_optimizer, stepping(dense)])
    with pytest.raises(AssertionError, match=r"no optimizer: .*calibration\.bias'\]"):
        audit(model, optimizer, collections, SCHEMA)


def test_a_copy_of_a_parameter(sound: Sound) -> None:
    model, _, collections = sound
    dense = dense_of(sound)
    name = "model.calibration.bias"
    dense[name] = nn.Parameter(dense[name].detach().clone())
    optimizer = CombinedOptimizer([model.fused_optimizer, stepping(dense)])
    with pytest.raises(AssertionError, match=r"steps copies.*calibration\.bias'\]"):
        audit(model, optimizer, collections, SCHEMA)


def test_a_fused_optimizer_that_is_never_stepped(sound: Sound) -> None:
    """It would train, at the learning rate of the first step for ever."""
    model, _, collections = sound
    optimizer = CombinedOptimizer([stepping(dense_of(sound))])
    with pytest.raises(AssertionError, match=r"never stepped: .*user_a\.weight"):
        audit(model, optimizer, collections, SCHEMA)


def test_tables_that_got_no_optimizer_before_they_were_sharded() -> None:
    """The kernel would train them by a plain SGD of its own."""
    model = build_task("retrieval", SCHEMA, SETTINGS, meta_device())
    user_tower = model.model.user_tower
    assert isinstance(user_tower, nn.Module)
    fuse_table_optimizer(user_tower, OPTIMIZER)
    with pytest.raises(AssertionError, match=r"ad_c\.weight: 0 optimizers inside"):
        collections_of(model)
    fuse_table_optimizer(model, OPTIMIZER)
    with pytest.raises(AssertionError, match=r"user_a\.weight: 2 optimizers inside"):
        collections_of(model)


def planned(model: DistributedModelParallel) -> ShardingPlan:
    return model.plan.plan["model.user_tower.tables"]


def test_a_table_that_is_not_in_the_plan(sound: Sound) -> None:
    del planned(sound[0])["user_b"]
    with pytest.raises(AssertionError, match=r"tables\.user_b is not in the plan"):
        audit(*sound, SCHEMA)


def test_a_data_parallel_table(sound: Sound) -> None:
    planned(sound[0])["user_b"].sharding_type = "data_parallel"
    with pytest.raises(AssertionError, match=r"user_b is data_parallel.*never trains"):
        audit(*sound, SCHEMA)


def test_shards_that_do_not_add_up(sound: Sound) -> None:
    planned(sound[0])["user_b"].sharding_spec.shards[0].shard_sizes[0] -= 1
    with pytest.raises(AssertionError, match=r"user_b: the shards hold 576 of 592"):
        audit(*sound, SCHEMA)


def test_features_in_another_order(sound: Sound) -> None:
    turned = SCHEMA.model_copy(update={"sparse": SCHEMA.sparse[::-1]})
    with pytest.raises(AssertionError, match=r"user_tower\.tables reads its features"):
        audit(*sound, turned)
