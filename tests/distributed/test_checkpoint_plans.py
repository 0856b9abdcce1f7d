"""A checkpoint of one sharding plan goes into another, to the bit, or is refused."""

import subprocess
from collections.abc import Callable
from pathlib import Path

PLANS = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner, ParameterConstraints, Topology
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.optimizer import build_optimizer, fuse_table_optimizer
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.schema import Schema
from torchrec_adrec.config.optimizer import OptimizerConfig

TW, RW, CW = "table_wise", "row_wise", "column_wise"
folder, schema = Path({folder!r}), Schema.load(Path({schema!r}))

class Sharder(EmbeddingBagCollectionSharder):
    def sharding_types(self, compute_device_type):
        return [TW, RW, CW]

def build(process, types):
    torch.manual_seed(process.rank)
    tables = [EmbeddingBagConfig(name=f"t{{i}}", embedding_dim=16, num_embeddings=30,
                                 feature_names=[f"f{{i}}"]) for i in range(len(types))]
    model = nn.Module()
    model.ebc = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    model.linear = nn.Linear(4, 1)
    fuse_table_optimizer(model, OptimizerConfig())
    constraints = {{
        f"t{{i}}": ParameterConstraints(sharding_types=[kind],
                                       compute_kernels=["fused"], min_partition=8)
        for i, kind in enumerate(types)
    }}
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=2, local_world_size=2, compute_device="cpu"),
        constraints=constraints, batch_size=8)
    plan = planner.collective_plan(model, [Sharder()], dist.group.WORLD)
    model = DistributedModelParallel(
        module=model, device=process.device, plan=plan, sharders=[Sharder()])
    return model, build_optimizer(model, OptimizerConfig(), torch.zeros(()))

def fill(tensors):
    for n, (name, value) in enumerate(sorted(tensors.items())):
        for shard in value.local_shards():
            first = shard.metadata.shard_offsets
            size = [torch.arange(o, o + s) for o, s in
                    zip(first, shard.metadata.shard_sizes)]
            mine = sum(a.reshape([-1] + [1] * (len(size) - 1 - i)) * 100.0 ** i
                       for i, a in enumerate(size))
            shard.tensor.copy_(mine.reshape(shard.tensor.shape) + hash_of(name))

def hash_of(name):
    return sum(map(ord, name)) % 97

def sharded(model, optimizer):
    flat = {{n: v for n, v in model.state_dict().items() if "ebc" in n}}
    for name, states in optimizer.state_dict()["state"].items():
        flat |= {{f"{{name}}.{{k}}": v for k, v in states.items() if "momentum" in k}}
    return flat

def values(tensors):
    return {{name: [shard.tensor.clone() for shard in value.local_shards()]
            for name, value in tensors.items()}}

def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(x, y) for n in a for x, y in zip(a[n], b[n], strict=True))

def save(process, name, types):
    model, optimizer = build(process, types)
    with torch.no_grad():
        fill(sharded(model, optimizer))
    path = checkpoint.save(
        folder / name, process, model, optimizer, schema, {{"step": 1}}, 1)
    return checkpoint.open_checkpoint(path)

def check(process, saved, types, whole=True):
    model, optimizer = build(process, types)
    checkpoint.load(saved, model, schema, optimizer if whole else None)
    actual = values(sharded(model, optimizer))
    with torch.no_grad():
        fill(sharded(model, optimizer))
    expected = values(sharded(model, optimizer))
    if not whole:
        actual, expected = ({{n: v for n, v in x.items() if "momentum" not in n}}
                           for x in (actual, expected))
    assert actual and same(actual, expected), types

with process_group("cpu") as process, torch.no_grad():
    torch.set_grad_enabled(True)
    mixed = save(process, "mixed", (TW, RW, TW))
    for types in ((RW, TW, RW), (TW, TW, TW), (RW, RW, RW)):
        check(process, mixed, types)
    sliced = save(process, "sliced", (CW, TW, TW))
    check(process, sliced, (CW, RW, TW))
    check(process, sliced, (RW, TW, TW), whole=False)
    try:
        check(process, sliced, (RW, TW, TW))
    except CheckpointError as error:
        print(f"refused: {{error}}\\n", end="", flush=True)  # one write, or they mix
    process.barrier()
    if process.is_first:
        file = mixed.path / "__1_0.distcp"
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    process.barrier()
    try:
        check(process, mixed, (TW, RW, TW))
    except CheckpointError as error:
        print(f"damaged: {{error}}\\n", end="", flush=True)
"""


def test_plans_go_into_one_another(
    prepared: Path,
    tmp_path: Path,
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
) -> None:
    """Every value says its table, row and column, so one in a wrong place is seen."""
    text = PLANS.format(folder=str(tmp_path), schema=str(prepared / "schema.json"))
    done = ranks_script(2, text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: ") == 2
    damaged = [x for x in done.stdout.splitlines() if x.startswith("damaged: ")]
    assert len(damaged) == 2  # both ranks say so, though one has hashed the file
    assert all("__1_0.distcp: expected sha256" in line for line in damaged)
    for phrase in (
        "does not fit the optimizer",
        "t0.momentum1 [60] there, [30] here",
        "A column_wise table has a row-wise Adagrad state for each slice",
    ):
        assert phrase in done.stdout
