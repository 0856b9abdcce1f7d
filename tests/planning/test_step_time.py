"""A step's milliseconds, counted by hand, and beside what was measured on an H200."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import REPOSITORY

from torchrec_adrec.config.run import load_config
from torchrec_adrec.planning import kernels
from torchrec_adrec.planning.cluster import parse
from torchrec_adrec.planning.estimate import Estimate, estimate
from torchrec_adrec.planning.job import Job
from torchrec_adrec.planning.kernels import Counted, Kernel
from torchrec_adrec.planning.launches import HOST, Calls, all_of, calls
from torchrec_adrec.planning.step_time import StepTime
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.retrieval import RetrievalTask
from torchrec_adrec.tasks.task import build_task

SCHEMA = Schema.load(REPOSITORY / "configs/schemas/criteo_1tb_mlperf.json")
TOWERS = (
    "retrieval={embedding_dim: 16, hidden: [512, 256], output_dim: 256, dropout: .1,"
    " click_bias: false}"
)
ONE = {"dense_kernels": 200, "adam_kernels": 3, "lookups": 2, "parameters": 10**6}


def job(batch: int, *words: str) -> Job:
    return Job.of(SCHEMA, load_config(None, [TOWERS, *words]), batch)


def on(gpus: str, batch: int, *words: str) -> Estimate:
    return estimate(job(batch, *words), parse(gpus))


# Calls of a step (launches and copies, by the profiler) and its milliseconds. Ours of
# that day made 4 blocks of 42 launches at 8,192, of 536 in all, and 1 and 256 blocks at
# 2,048 and 65,536; milliseconds are the batch over samples/s.
@pytest.mark.parametrize(
    ("launches", "copies", "measured"),
    [
        (536 - 3 * 42, 78, 2048 / 149.5),
        (536, 78, 8192 / 369.5),
        (536 + 252 * 42, 78, 65536 / 189.8),
        (177, 30, 8192 / 967.3),  # a plain TorchRec trainer
    ],
)
def test_what_launches_cost_as_measured(
    launches: int, copies: int, measured: float
) -> None:
    assert HOST.milliseconds(Calls(launches, copies)) == pytest.approx(
        measured, rel=0.25
    )


def test_an_operation_is_counted_once() -> None:
    """Bytes: what is read and what is written, once each; views move nothing."""
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    with Counted() as counted:
        a.relu().T.T.relu_()
        _ = a @ b
        torch.empty(1000)
    read, written = 10 * 20 * 4, 10 * 30 * 4
    assert counted.kernels == [
        Kernel(0, 2 * read),
        Kernel(0, 2 * read),
        Kernel(2 * 10 * 20 * 30, read + 20 * 30 * 4 + written),
    ]


@pytest.mark.parametrize("bias", ["false", "true"])
def test_heads(bias: str) -> None:
    """Operations by the weights: two forward, four backward, of each weight and row."""
    config = load_config(None, [TOWERS, f"retrieval.click_bias={bias}"])
    model = build_task("retrieval", SCHEMA, config, torch.device("meta"))
    assert isinstance(model, RetrievalTask)
    counted = kernels.heads(model.model, 640, low=False)
    weights = sum(
        m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)
    )
    assert sum(kernel.operations for kernel in counted) == 6 * 640 * weights
    layers = sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert sum(kernel.operations > 0 for kernel in counted) == 3 * layers
    # Casts beside every product, and the same products of half the bytes.
    low = kernels.heads(model.model, 640, low=True)
    assert len(low) > len(counted)
    assert sum(k.operations for k in low) == 6 * 640 * weights
    # Nothing of the model itself was touched.
    assert model.model.user_tower.head.mlp[0].weight.device.type == "cpu"
    assert torch.isfinite(model.model.user_tower.head.mlp[0].weight).all()


def test_softmax() -> None:
    """Logits by factors three times as deep, two products with the slopes, by block."""
    anchors, ads, width = 16_384, 65_536, 256
    counted = kernels.softmax(anchors, ads, width, low=False)
    cells = anchors * ads
    assert kernels.blocks(anchors, ads) == 4
    assert sum(k.operations for k in counted) == (3 + 2) * 2 * cells * width
    assert sum(k.half for k in counted) == 4
    moved = sum(k.bytes for k in counted)
    # Written, read twice, slopes written and read twice; little else.
    assert cells * 6 * 4 < moved < cells * 6 * 4 * 1.3
    assert len(kernels.softmax(512, 2048, width, low=False)) < len(counted)


def test_a_kernel_takes_as_long_as_what_is_slowest() -> None:
    few = [Kernel(8e9, 1), Kernel(8e9, 1, half=True), Kernel(0, 1e6), Kernel(0, 1)]
    products, others = kernels.milliseconds(few, 1e12, 4e12, 1e9, 1e-6)
    assert products == pytest.approx(8 + 2)
    assert others == pytest.approx(1 + 0.001)


def test_more_launches_are_slower() -> None:
    """Nothing that the host has to do makes a step faster."""
    one = HOST.milliseconds(all_of(calls(ranks=1, **ONE)))
    many = HOST.milliseconds(all_of(calls(ranks=2, **ONE)))
    assert many > one  # no graph, and the exchange
    for name in ("dense_kernels", "adam_kernels", "lookups", "parameters"):
        more = ONE | {name: ONE[name] * 50}
        after = HOST.milliseconds(all_of(calls(ranks=2, **more)))
        assert after > many
    for ranks in (1, 2):  # every part of a collection's, not their sum alone
        two, four = (calls(ranks=ranks, **ONE | {"lookups": n}) for n in (2, 4))
        assert four["lookups"] == two["lookups"] * 2
    # The dense part of one rank is a graph: its kernels cost the host nothing.
    graph = calls(ranks=1, **ONE | {"dense_kernels": 10_000})
    assert HOST.milliseconds(all_of(graph)) == one


def test_the_longest_is_the_step_and_named() -> None:
    time = StepTime({"a": Calls(1000)}, 1, 2, 3, 4, 0, 0)
    assert time.total == time.host == HOST.milliseconds(Calls(1000))
    assert time.limit == "the host's launches"
    busy = replace(time, products=100.0)
    assert busy.total == busy.device == 100 + 2 + 3 + 4
    assert busy.limit == "the device, most of it products"
    assert replace(time, copies=200.0).limit == "copies"
    assert replace(time, ids=200.0).limit == "ids between ranks"
    for part in ("products", "memory", "tables", "communication", "copies", "ids"):
        slower: dict[str, Any] = {part: 300.0}
        assert replace(time, **slower).total > time.total


def test_small_batches_wait_for_the_host_and_large_ones_for_the_card() -> None:
    small, large = on("1xH200-141GB", 2048), on("1xH200-141GB", 65_536)
    assert small.time.limit == "the host's launches"
    assert large.time.limit.startswith("the device")
    assert small.step_ms < large.step_ms
    assert small.time.communication == 0
    low = on("1xH200-141GB", 65_536, "train.precision=bfloat16")
    assert low.time.products < large.time.products / 2
    # Rows that nobody clicked are no anchors.
    job_of_few = replace(job(65_536), clicked=0.03)
    few = estimate(job_of_few, parse("1xH200-141GB"))
    assert few.time.products < large.time.products / 2


def test_links_are_counted_once() -> None:
    """What is sent, over the slowest link, is what the messages take; each stands in
    one part of the step.
    """
    estimated = on("16xH100-80GB", 65_536)
    for name, sent in estimated.sent.parts().items():
        assert estimated.links[name] == pytest.approx(sent.max() / 50e9 * 1e3)
    comms = [0.0] * estimated.cluster.ranks
    for shard in (s for option in estimated.plan.chosen for s in option.shards):
        comms[shard.rank] += shard.perf.fwd_comms + shard.perf.bwd_comms
    others = estimated.links["ads"] + estimated.links["dense"]
    assert estimated.time.ids == estimated.links["ids"]
    assert (
        min(comms) + others
        <= estimated.time.communication
        <= max(comms) + others + 1e-9
    )
