"""What a step draws at random."""

import pytest
import torch
from conftest import StepsWith
from planted import faults, smooth
from rounding import ORDERS, Results, Rounding, reorder

from torchrec_adrec.distributed.process import Process
from torchrec_adrec.models.tower import TowerHead
from torchrec_adrec.training.step_runner import seed_generators


def drawn(seed: int, number: int, rank: int) -> float:
    """The first number after a step has been seeded."""
    seed_generators(seed, number, Process(rank, 2, 2, torch.device("cpu")))
    return torch.rand(1, dtype=torch.float64).item()


def test_every_step_of_every_rank_and_seed_draws_its_own_and_draws_it_again() -> None:
    places = [(s, n, r) for s in (0, 1) for n in (1, 2, 3) for r in (0, 1)]
    first = [drawn(*place) for place in places]
    assert len(set(first)) == len(places)
    assert [drawn(*place) for place in places] == first


FAULTS = faults("ad_tower.tables.embedding_bags.ad_C14.weight")


def ten_steps(
    steps_with: StepsWith,
    compiled: bool = False,
    order: int | None = None,
    fault: str | None = None,
) -> Results:
    """Losses and weights after ten steps of smooth towers."""
    with steps_with(f"train.compile={str(compiled).lower()}") as steps:
        heads = [m for m in steps.model.modules() if isinstance(m, TowerHead)]
        kinds = {hasattr(head.encode, "_torchdynamo_orig_callable") for head in heads}
        assert kinds == {compiled}
        smooth(steps.model)
        if order is not None:
            reorder(steps.source, order)
        if fault is not None:
            FAULTS[fault](steps.model)
        losses = torch.stack([steps.run_step().loss.clone() for _ in range(10)])
        weights = {}
        for name, value in steps.model.state_dict().items():
            shards = getattr(value, "local_shards", None)
            weights[name] = (shards()[0].tensor if shards else value).clone()
    return {"weights": weights, "losses": {"of each step": losses}}


@pytest.mark.slow
def test_compiled_towers_take_the_same_steps(steps_with: StepsWith) -> None:
    reordered = [ten_steps(steps_with, order=order) for order in ORDERS]
    rounding = Rounding("ten steps", ten_steps(steps_with), *reordered)
    rounding.holds("compiled", ten_steps(steps_with, compiled=True))
    for fault in FAULTS:
        rounding.sees(fault, ten_steps(steps_with, fault=fault))


def test_a_step_in_bfloat16_has_float32_vectors_of_length_one(
    steps_with: StepsWith,
) -> None:
    """Scores that are trained are those that are served: only products are short."""
    with steps_with("train.precision=bfloat16", "train.health_every=0") as steps:
        outputs = []
        for head in (m for m in steps.model.modules() if isinstance(m, TowerHead)):
            head.register_forward_hook(
                lambda *hook_args: outputs.append(hook_args[2].detach())
            )
        loss = steps.run_step().loss
    assert loss.dtype == torch.float32 and len(outputs) == 2
    for vectors in outputs:
        assert vectors.dtype == torch.float32
        lengths = vectors.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)


def test_the_guard_is_the_one_that_the_model_asks(steps_with: StepsWith) -> None:
    """Another one would be told of a stop, and nobody would hear of it."""
    with steps_with() as steps:
        assert any(module is steps.guard for module in steps.model.modules())
        found_inf = steps.optimizer.dense._optimizer.found_inf
        assert found_inf.data_ptr() == steps.guard.bad.data_ptr()
