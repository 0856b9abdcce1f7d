"""Tables in float16: half of the memory, float32 vectors, and training goes on."""

from pathlib import Path

import pytest
import torch
from conftest import TINY, StepsWith
from torch import Tensor

from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.sharded import build
from torchrec_adrec.tasks.task import build_task

HALF = "retrieval.tables_precision=float16"


def tables(model: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: value.local_shards()[0].tensor.clone()
        for name, value in model.state_dict().items()
        if hasattr(value, "local_shards")
    }


def test_steps_train_float16_tables_with_float32_vectors(
    steps_with: StepsWith,
) -> None:
    with steps_with(HALF) as steps:
        before, dtypes = tables(steps.model), []
        inner = steps.model.module.model.user_tower.head
        inner.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
        losses = [steps.run_step().loss.item() for _ in range(5)]
        after = tables(steps.model)
    assert set(dtypes) == {torch.float32}
    for name, value in after.items():
        assert value.dtype == (torch.float32 if "+bias" in name else torch.float16)
        assert not torch.equal(value, before[name]), name
    # The same steps again end with the same bits.
    with steps_with(HALF) as steps:
        assert [steps.run_step().loss.item() for _ in range(5)] == losses
        for name, value in tables(steps.model).items():
            assert torch.equal(value, after[name])


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_checkpoint_keeps_them_for_the_same_model_in_one_piece(
    precision: str, prepared: Path, tmp_path: Path
) -> None:
    config = load_config(None, [*TINY, HALF])
    schema = Schema.load(prepared / "schema.json")
    with process_group("cpu") as process:
        sharded = build("retrieval", schema, config, process)
        state = {"task": "retrieval", "step": 1, "trained_on": ["train"]}
        state |= {"vocabulary": {}, "config": config.model_dump(mode="json")}
        checkpoint.save(
            *(tmp_path / "c", process, sharded.model, sharded.optimizer, schema, state),
            *(2, None),
        )
        expected = tables(sharded.model)
        saved = checkpoint.latest(tmp_path / "c")
        assert saved is not None
        config = load_config(None, [*TINY, f"retrieval.tables_precision={precision}"])
        whole = build_task("retrieval", schema, config)
        checkpoint.load(saved, whole, schema)
    for name, value in whole.state_dict().items():
        if name in expected:
            assert value.dtype == getattr(torch, precision) or "+bias" in name
            assert torch.equal(value.float(), expected[name].float())
