"""Options are estimated once a size: the same figures as TorchRec's, shard by shard."""

import copy

import torch
from torch import nn
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import Perf, Shard, ShardingOption
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from torchrec_adrec.distributed.planner import OrderedEnumerator
from torchrec_adrec.distributed.sharders import TYPES, Sharder
from torchrec_adrec.planning.cluster import parse

# Rows that fill no rank, some ranks, and all but the last one evenly; 24 columns make
# slices of 16 and 8.
ROWS = {"few": 3, "odd": 1001, "many": 100_000}


def shards(kind: type[EmbeddingEnumerator]) -> dict[tuple[str, str], list[Shard]]:
    tables = [
        EmbeddingBagConfig(
            name=name, num_embeddings=rows, embedding_dim=24, feature_names=[name]
        )
        for name, rows in ROWS.items()
    ]
    model = nn.ModuleDict(
        {"tables": EmbeddingBagCollection(tables=tables, device=torch.device("meta"))}
    )
    allowed = {
        name: ParameterConstraints(
            sharding_types=list(TYPES),
            compute_kernels=["fused"],
            min_partition=16,
            pooling_factors=[3.0],
        )
        for name in ROWS
    }
    enumerator = kind(parse("16xA100-40GB").topology(), 100, allowed)
    options = enumerator.enumerate(model, [Sharder()])
    return {(o.name, o.sharding_type): o.shards for o in options}


def test_the_same_as_torchrecs_own() -> None:
    ours, theirs = shards(OrderedEnumerator), shards(EmbeddingEnumerator)
    assert ours.keys() == theirs.keys() and len(ours) == len(ROWS) * len(TYPES)
    several = 0
    for key, actual in ours.items():
        expected = theirs[key]
        several += len({tuple(shard.size) for shard in expected}) > 1
        assert [(s.size, s.offset, s.storage, s.perf) for s in actual] == [
            (s.size, s.offset, s.storage, s.perf) for s in expected
        ], key
    assert several > 3  # else nothing of different sizes was compared


class ByRows:
    """An estimator by which a shard takes as long as it has rows."""

    def estimate(self, options: list[ShardingOption], _: object) -> None:
        for option in options:
            for shard in option.shards:
                shard.perf = Perf(shard.size[0], 0, 0, 0)


def test_every_shard_has_the_time_of_its_own_size() -> None:
    class Enumerator(OrderedEnumerator):
        def populate_estimates(self, options: list[ShardingOption]) -> None:
            self._estimators[0] = ByRows()
            super().populate_estimates(options)

    sizes = set()
    for actual in shards(Enumerator).values():
        assert all(shard.perf.total == shard.size[0] for shard in actual)
        sizes.add(len({shard.size[0] for shard in actual}))
    assert max(sizes) > 1


def test_a_copy_has_a_rank_of_its_own() -> None:
    """The planner keeps its best plan as a copy, and places the next one's shards."""
    option = shards(OrderedEnumerator)["many", "row_wise"]
    option[0].rank = 5
    kept = copy.deepcopy(option)
    option[0].rank = None
    assert kept[0].rank == 5 and kept[1].rank is None
    assert kept[0].perf == option[0].perf and kept[0].storage == option[0].storage
