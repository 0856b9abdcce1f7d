"""The number of hard negatives over the steps of a run."""

import pytest
import torch
from conftest import StepsWith

from torchrec_adrec.losses.hardest import below_hardest, hardest_now
from torchrec_adrec.losses.negatives import Negatives
from torchrec_adrec.losses.softmax import sampled_softmax
from torchrec_adrec.tasks import retrieval


def test_the_number_of_negatives_falls_by_the_same_factor_in_every_step() -> None:
    numbers = [hardest_now(10, 1000, risen / 4) for risen in range(5)]
    assert numbers == [1000, 316, 100, 32, 10]
    assert hardest_now(10, 4, 0.5) == 4


def test_equal_logits_are_equally_hard() -> None:
    mask = below_hardest(torch.tensor([[3.0, 1, 2, 2]]), 2)
    assert mask.tolist() == [[False, True, False, False]]


@pytest.mark.parametrize(
    ("rise", "expected"), [(0, [4] * 10), (0.5, [21, 14, 9, 6, 4, 4, 4, 4, 4, 4])]
)
def test_a_run_counts_its_steps_for_the_curriculum(
    rise: float,
    expected: list[int],
    steps_with: StepsWith,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[int | None] = []

    def spy(*args: object) -> object:
        chosen.extend(a.hardest for a in args if isinstance(a, Negatives))
        return sampled_softmax(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(retrieval, "sampled_softmax", spy)
    rule = f"retrieval={{hardest: 4, hardest_rise: {rise}}}"
    with steps_with(rule, "retrieval.alpha=0.5") as steps:
        assert steps.source.steps == len(expected)
        for _ in expected:
            steps.run_step()
    assert chosen == expected
