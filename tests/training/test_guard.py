"""A loss that is not finite on one rank changes no weight on any."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

SCRIPT = """
from pathlib import Path

import torch

from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.errors import NonFiniteLossError
from torchrec_adrec.tasks.guard import Guard
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import build
from torchrec_adrec.training.precision import MatmulPrecision
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.step_runner import StepRunner


def state_of(steps):
    '''Every weight, momentum and step count that this rank holds.'''
    state = {{}}

    def keep(name, value):
        if hasattr(value, "local_shards"):
            for i, shard in enumerate(value.local_shards()):
                state[f"{{name}}/{{i}}"] = shard.tensor.clone()
        elif isinstance(value, torch.Tensor):
            state[name] = value.detach().clone()

    for name, value in steps.model.state_dict().items():
        keep(name, value)
    for name, momenta in steps.optimizer.state_dict()["state"].items():
        for key, value in momenta.items():
            keep(f"{{name}} {{key}}", value)
    return state


fault = {fault!r}
if fault == "tables are not guarded":
    Guard.guard_gradient = lambda self, vectors: vectors
data, config = Path({data!r}), load_config(None, {overrides!r})
with process_group("cpu") as process:
    schema = Schema.load(data / "schema.json")
    source = BatchSource(data, schema, config.train, config.seed, process, data)
    sharded = build("retrieval", schema, config, process)
    if fault == "the dense part is not guarded":
        for group in sharded.optimizer.optimizers:
            inner = getattr(group[1], "_optimizer", None)
            if inner is not None:
                inner.found_inf = None
    precision = MatmulPrecision("highest", False)
    steps = StepRunner(sharded, source, process, config.train, config.seed, precision)
    for _ in range(3):
        steps.run_step()
    steps.flush()
    before = state_of(steps)
    if process.rank == 1:  # one row of one of two ranks
        source.ahead(4).weights[5] = torch.nan
    raised = "nothing"
    try:
        steps.run_step()
        steps.run_step()
    except NonFiniteLossError as error:
        raised = str(error)
    after = state_of(steps)
    same = [torch.equal(before[name], after[name]) for name in before]
    counted = any(name.endswith(" step") for name in before)
    lines = [""] * 2
    facts = (process.rank, all(same), counted, len(same) > 50, raised)
    torch.distributed.all_gather_object(lines, " ".join(map(str, facts)))
    if process.is_first:
        for line in ("", *lines):
            print(line)
"""


@pytest.mark.parametrize(
    "fault", ["", "tables are not guarded", "the dense part is not guarded"]
)
def test_no_weight_changes_on_either_rank(
    fault: str,
    prepared: Path,
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
) -> None:
    """Nor a momentum, nor a step count; both ranks stop a step later and say why."""
    text = SCRIPT.format(data=str(prepared), overrides=list(TINY), fault=fault)
    done = ranks_script(2, text)
    assert done.returncode == 0, done.stderr
    lines = [x for x in done.stdout.splitlines() if "True True" in x]
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert line.startswith(f"{rank} {not fault} True True the loss became nan")
        assert "at step 4, before any weight changed" in line
        assert "row" in line and ".parquet" in line
