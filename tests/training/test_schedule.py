"""After which steps a run logs, evaluates and saves."""

from collections.abc import Callable
from typing import Any

from torchrec_adrec.config.train import TrainConfig
from torchrec_adrec.training.schedule import Schedule


def steps_of(due: Callable[[int], bool]) -> list[int]:
    return [step for step in range(1, 24) if due(step)]


def schedule(accumulate: int, **settings: Any) -> Schedule:
    return Schedule(23, accumulate, TrainConfig(**settings))


def test_without_accumulation_every_step_is_whole() -> None:
    plain = schedule(1, checkpoint_every=10, evaluate_every=6, log_every=8)
    assert steps_of(plain.is_whole) == list(range(1, 24))
    assert steps_of(plain.saves_at) == [10, 20]
    assert steps_of(plain.evaluates_at) == [6, 12, 18, 23]  # and at the end
    assert steps_of(plain.logs_at) == [8, 16, 23]


def test_gradients_that_wait_are_never_saved() -> None:
    """Of three steps a dense update: the first whole step after the one that is due."""
    threes = schedule(3, checkpoint_every=10, evaluate_every=10)
    assert steps_of(threes.is_whole) == [3, 6, 9, 12, 15, 18, 21, 23]
    assert steps_of(threes.saves_at) == [12, 21]
    assert steps_of(threes.evaluates_at) == [12, 21, 23]


def test_no_evaluation_unless_asked_for() -> None:
    assert steps_of(schedule(1, evaluate_every=0).evaluates_at) == []
