"""Rates, accumulation and clipping, on the real sharded towers."""

from itertools import pairwise

import pytest
import torch
from conftest import StepsWith
from torch import Tensor

from torchrec_adrec.config.optimizer import OptimizerConfig
from torchrec_adrec.distributed.optimizer import rate
from torchrec_adrec.training.step_runner import StepRunner


def test_rates_rise_and_fall() -> None:
    config = OptimizerConfig(warmup_steps=4, decay="linear")
    rates = [rate(step, 8, config) for step in range(1, 9)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    cosine = OptimizerConfig(decay="cosine")
    assert rate(1, 100, cosine) == pytest.approx(1.0)
    assert rate(51, 100, cosine) == pytest.approx(0.5)
    assert 0 < rate(100, 100, cosine) < 0.001
    assert rate(7, 8, OptimizerConfig()) == 1


def weights(steps: StepRunner) -> dict[str, Tensor]:
    values = {}
    for name, value in steps.model.state_dict().items():
        shards = getattr(value, "local_shards", None)
        values[name] = (shards()[0].tensor if shards else value).detach().clone()
    return {name: value for name, value in values.items() if value.numel()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor], part: str) -> float:
    return sum(float((after[n] - before[n]).norm()) for n in before if part in n)


def test_the_warm_up_reaches_tables_and_the_rest(steps_with: StepsWith) -> None:
    """A new rate that the table's kernel does not see would move it in full."""
    pairs = []
    for overrides in ((), ("retrieval.optimizer.warmup_steps=1000",)):
        with steps_with(*overrides) as steps:
            before = weights(steps)
            steps.run_step()
            pairs.append((before, weights(steps)))
    for part in ("embedding_bags", "head"):
        full, warm = (moved(*pair, part) for pair in pairs)
        assert warm == pytest.approx(full / 1000, rel=0.02), part


def test_gradients_of_some_steps_make_one_dense_update(steps_with: StepsWith) -> None:
    with steps_with("retrieval.optimizer.accumulate=3") as steps:
        parameters = steps.optimizer.dense.params.items()
        bias = next(p for name, p in parameters if name.endswith("calibration.bias"))
        states, gradients = [weights(steps)], []
        for _ in range(4):
            steps.run_step()
            states.append(weights(steps))
            gradients.append(float(bias.grad))
    still = [moved(a, b, "head") for a, b in pairwise(states)]
    tables = [moved(a, b, "embedding_bags") for a, b in pairwise(states)]
    assert still[0] == still[1] == still[3] == 0 and still[2] > 0
    assert min(tables) > 0
    assert abs(gradients[3]) < abs(gradients[1])  # begun anew, not added to old ones


def test_a_clipped_gradient_has_the_norm_that_was_asked_for(
    steps_with: StepsWith,
) -> None:
    with steps_with("retrieval.optimizer.clip_norm=0.001") as steps:
        steps.run_step()
        parameters = steps.optimizer.dense.params.values()
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
    assert norm.item() == pytest.approx(0.001, rel=1e-3)
