"""What TorchRec keeps to itself and this project reads is there, and means the same."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchrec
from fifty_steps import SCHEMA, config, rows_of
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.modules.embedding_configs import PoolingType

from torchrec_adrec.distributed import torchrec_internals
from torchrec_adrec.distributed.optimizer import fuse_table_optimizer
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.distributed.sharders import Sharder
from torchrec_adrec.distributed.sharding import meta_device
from torchrec_adrec.distributed.torchrec_internals import (
    estimators,
    in_backward_optimizers,
    kernels,
    lookup_groups,
    never_divide,
    output_names,
    output_widths,
    sharded_collections,
    sharder_data,
    sharding_types,
    table_configs,
    table_of_feature,
)
from torchrec_adrec.schema import Side
from torchrec_adrec.tasks.sharded import build
from torchrec_adrec.tasks.task import build_task

FEATURES = [feature.name for feature in SCHEMA.bags_of(Side.USER)]
WIDTH = 16


def users_of(process: Process, *overrides: str) -> Any:
    """The sharded collection of the users' tables."""
    model, *_ = build("retrieval", SCHEMA, config(*overrides), process)
    (users,) = (
        collection
        for collection in sharded_collections(model)
        if len(table_configs(collection)) == len(FEATURES)
    )
    return users


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with process_group("cpu") as process:
        yield process


@pytest.fixture(scope="module")
def collection(process: Process) -> Any:
    """Whole on one rank."""
    return users_of(process)


def test_the_version_is_the_one_that_was_checked() -> None:
    """Else go through the comments of that file, and name the new one there."""
    assert torchrec.__version__ == torchrec_internals.CHECKED_WITH


def test_tables_and_their_features(collection: Any) -> None:
    assert [table.name for table in table_configs(collection)] == [
        f"user_{name}" for name in FEATURES
    ]
    assert table_of_feature(collection) == {name: f"user_{name}" for name in FEATURES}


def test_kernels_are_those_that_the_forward_pass_asks(collection: Any) -> None:
    assert sharding_types(collection) == ["table_wise"]
    (lookup,) = lookup_groups(collection)
    counts = [len(tables.feature_names()) for tables in lookup.grouped_configs]
    assert len(counts) == 2  # sums and means have a kernel each
    ids = rows_of(0, 0, 1).user.sparse
    looked_up = [
        kernel(indices=part.values(), offsets=part.offsets())
        for kernel, part in zip(kernels(lookup), ids.split(counts), strict=True)
    ]
    whole = collection(ids).wait()
    assert torch.equal(torch.cat(looked_up, dim=1), whole.values())
    assert output_names(collection) == whole.keys() == FEATURES
    assert output_widths(collection) == whole.length_per_key() == [WIDTH] * 5


def test_features_are_added_to_those_that_are_never_divided(process: Process) -> None:
    """What that does to means is seen by the mix of types in test_sharding_types.py."""
    users = users_of(process, "sharding.types=[row_wise]")
    features = users._pooling_type_to_rs_features
    assert set(features) == {PoolingType.SUM.value, PoolingType.MEAN.value}
    before = list(features[PoolingType.SUM.value])
    never_divide(users, ["one", "two"])
    assert features[PoolingType.SUM.value] == [*before, "one", "two"]


def test_optimizers_inside_backward_are_counted() -> None:
    model = build_task("retrieval", SCHEMA, config(), meta_device())
    table = next(p for n, p in model.named_parameters() if "user_a.weight" in n)
    assert len(in_backward_optimizers(table)) == 0
    fuse_table_optimizer(model, config().retrieval.optimizer)
    assert len(in_backward_optimizers(table)) == 1


def test_estimators_and_sharders_of_the_planner() -> None:
    names = [f"{side}_{f.name}" for side in Side for f in SCHEMA.bags_of(side)]
    only = {n: ParameterConstraints(sharding_types=["table_wise"]) for n in names}
    enumerator = EmbeddingEnumerator(
        Topology(world_size=2, compute_device="cpu"), batch_size=8, constraints=only
    )
    model = build_task("retrieval", SCHEMA, config(), meta_device())
    options = enumerator.enumerate(model, [Sharder()])
    assert {o.name for o in options} == set(names)
    perfs = [o.shards[0].perf.total for o in options]
    for estimator in estimators(enumerator):
        estimator.estimate(options, sharder_data(enumerator))
    assert [o.shards[0].perf.total for o in options] == perfs
    assert len(estimators(enumerator)) == 2 and perfs[0] > 0


READERS: list[Callable[[Any], Any]] = [
    *(table_configs, sharding_types, lookup_groups, kernels, output_names),
    *(output_widths, estimators, sharder_data),
    lambda collection: never_divide(collection, []),
]


@pytest.mark.parametrize("read", READERS)
def test_an_attribute_that_is_gone_is_named(read: Callable[[Any], Any]) -> None:
    with pytest.raises(
        AttributeError, match=r"^object of torchrec .* has no _[a-z]\w+"
    ):
        read(object())
