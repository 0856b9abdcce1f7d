"""What a step draws at random."""

from types import SimpleNamespace

import torch
from conftest import StepsWith

from torchrec_adrec.models.tower import TowerHead
from torchrec_adrec.training.steps import Steps


def drawn(seed: int, number: int, rank: int) -> float:
    """The first number after a step has been seeded."""
    step = SimpleNamespace(
        config=SimpleNamespace(seed=seed),
        process=SimpleNamespace(rank=rank, device=torch.device("cpu")),
        number=number,
    )
    Steps._seed(step)  # type: ignore[arg-type]
    return torch.rand(1, dtype=torch.float64).item()


def test_every_step_of_every_rank_and_seed_draws_its_own_and_draws_it_again() -> None:
    places = [(s, n, r) for s in (0, 1) for n in (1, 2, 3) for r in (0, 1)]
    first = [drawn(*place) for place in places]
    assert len(set(first)) == len(places)
    assert [drawn(*place) for place in places] == first


def test_compiled_towers_take_the_same_steps(steps_with: StepsWith) -> None:
    losses = []
    for compiled in ("false", "true"):
        with steps_with(f"train.compile={compiled}") as steps:
            losses.append([steps.take().loss.item() for _ in range(4)])
            heads = [m for m in steps.model.modules() if hasattr(m, "encode")]
            kinds = {
                hasattr(head.encode, "_torchdynamo_orig_callable") for head in heads
            }
            assert kinds == {compiled == "true"}
    assert losses[0][0] != losses[0][3]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_a_step_in_bfloat16_has_float32_vectors_of_length_one(
    steps_with: StepsWith,
) -> None:
    """Scores that are trained are those that are served: only products are short."""
    with steps_with("train.precision=bfloat16", "train.health_every=0") as steps:
        seen = []
        for head in (m for m in steps.model.modules() if isinstance(m, TowerHead)):
            head.register_forward_hook(lambda *told: seen.append(told[2].detach()))
        loss = steps.take().loss
    assert loss.dtype == torch.float32 and len(seen) == 2
    for vectors in seen:
        assert vectors.dtype == torch.float32
        lengths = vectors.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)
