"""What a step asks of a device: few operations, none that it has to be waited for."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, StepsWith
from operations import Operations

from torchrec_adrec.distributed.alone import DirectLookup
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.losses import softmax
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks import guard
from torchrec_adrec.tasks.after_lookup import AfterLookup
from torchrec_adrec.training.step_runner import StepRunner

sys.path.append(str(REPOSITORY / "benchmarks"))
OVERRIDES = (
    "retrieval.click_bias=false",
    "train.health_every=0",
    "train.dead_model=warn",
)


def count(steps: StepRunner) -> Operations:
    """The operations of a step that is neither the first nor one that looks."""
    operations = Operations()
    for module in steps.model.modules():
        if isinstance(module, AfterLookup):
            operations.watch(module, "heads, loss")
    loop: Any = steps.pipeline
    loop.optimizer.step = operations.during("optimizer", loop.optimizer.step)
    backward = operations.during("backward", torch.Tensor.backward)
    for _ in range(3):
        steps.run_step()
    with pytest.MonkeyPatch.context() as patch, operations:
        patch.setattr(torch.Tensor, "backward", backward)
        look_up = operations.during("lookup", DirectLookup.__call__)
        patch.setattr(DirectLookup, "__call__", look_up)
        steps.run_step()
    return operations


def plain_operations(prepared: Path) -> Operations:
    """The same of the plain TorchRec trainer, with the mask of accidental hits."""
    from baselines import torchrec_plain
    from conftest import TINY

    from torchrec_adrec.config.run import load_config
    from torchrec_adrec.training.batch_source import BatchSource

    config = load_config(None, [*TINY, *OVERRIDES])
    schema = Schema.load(prepared / "schema.json")
    with process_group("cpu") as process:
        train, seed = config.train, config.seed
        source = BatchSource(prepared, schema, train, seed, process, prepared)
        size = config.train.batch_size
        _, pipeline = torchrec_plain.build(schema, config.retrieval, size, masked=True)
        batches = source.batches(0)
        for _ in range(3):
            pipeline.progress(batches)
        operations = Operations()
        with operations:
            pipeline.progress(batches)
    return operations


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "in_large_blocks", lambda device: True)
    monkeypatch.setattr(guard, "reading_is_free", lambda device: False)


@pytest.mark.usefixtures("as_on_a_device")
def test_a_step_asks_no_more_than_plain_torchrec(
    steps_with: StepsWith, prepared: Path
) -> None:
    with steps_with(*OVERRIDES) as steps:
        ours = count(steps)
    plain = plain_operations(prepared)
    print(f"ours {ours.total} {dict(ours.counts)}, plain {plain.total}")
    assert 50 < ours.total <= plain.total


@pytest.mark.usefixtures("as_on_a_device")
def test_nothing_in_a_step_waits_for_the_device(steps_with: StepsWith) -> None:
    with steps_with(*OVERRIDES) as steps:
        operations = count(steps)
    # FBGEMM reads its learning rate and step, which it keeps on the host.
    assert [w for w in operations.waits if not w.endswith("in lookup")] == []
    assert set(operations.waits) == {"_local_scalar_dense in lookup"}


def test_the_blocks_of_a_cpu_would_be_seen(steps_with: StepsWith) -> None:
    """The old lines: sorted matches, a mask of places, one block after the other."""
    with steps_with(*OVERRIDES) as steps:
        operations = count(steps)
    assert any("repeat_interleave" in wait for wait in operations.waits)


STEP_FILES = (
    *("tasks/guard.py", "tasks/after_lookup.py", "tasks/retrieval.py"),
    *("tasks/ranking.py", "distributed/alone.py", "training/graphs.py"),
    *("training/step_runner.py", "training/late.py", "distributed/optimizer.py"),
    *("losses/softmax.py", "losses/device_blocks.py", "losses/excluded.py"),
    *("losses/products.py", "losses/grad_logits.py", "losses/grad_logits_kernel.py"),
    *("losses/history.py", "losses/gather.py", "losses/mean.py"),
    *("losses/pointwise.py", "losses/pairwise.py", "models/two_tower.py"),
    *("models/tower.py", "modules/embeddings.py", "modules/split_linear.py"),
    *("modules/attention.py", "modules/mlp.py", "tasks/label_heads.py"),
    *(f"models/rankers/{name}.py" for name in ("base", "logistic", "transformer")),
)
HOST = re.compile(r"\.(cpu|item|tolist|numpy|new_tensor|nonzero)\(")
READ_ON_PURPOSE = {
    # What was copied to the host behind the step before.
    ("training/step_runner.py", "loss, stopping, bad = report.tolist()"),
}


def host_reads(name: str) -> list[str]:
    text = (REPOSITORY / "torchrec_adrec" / name).read_text()
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if HOST.search(line)]


@pytest.mark.parametrize("name", STEP_FILES)
def test_no_file_of_a_step_reads_the_device(name: str) -> None:
    reads = [line for line in host_reads(name) if (name, line) not in READ_ON_PURPOSE]
    assert reads == []


@pytest.mark.parametrize(
    "line", ["value.cpu()", "loss.item()", "loss.new_tensor(flag)", "rows.nonzero()"]
)
def test_a_read_would_be_seen(line: str) -> None:
    assert HOST.search(line)


def test_every_file_of_a_step_is_there() -> None:
    for name in STEP_FILES:
        assert (REPOSITORY / "torchrec_adrec" / name).exists(), name
