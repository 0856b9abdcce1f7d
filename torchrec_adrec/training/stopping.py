"""Decides when to stop: once the validation figure no longer gets better."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EarlyStopping:
    """The validation figures so far, kept in every checkpoint.

    Attributes:
        patience: evaluations without a better one after which to stop; None: never.
        history: (step, figure) of every evaluation.
        is_loss: whether the smallest figure is the best; else the largest one is.
    """

    patience: int | None
    history: list[tuple[int, float]] = field(default_factory=list)
    is_loss: bool = True

    def add(self, step: int, figure: float) -> bool:
        """Take an evaluation, and say whether it is the best so far."""
        # Strictly better, so of equal ones the first stays the best, as in `best`.
        sign = 1 if self.is_loss else -1
        is_best = all(sign * figure < sign * earlier for _, earlier in self.history)
        self.history.append((step, figure))
        return is_best

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and figure of the best evaluation, of equal ones the first."""
        # Both take the first of equal ones.
        choose = min if self.is_loss else max
        return choose(self.history, key=lambda pair: pair[1], default=None)

    @property
    def best_step(self) -> int | None:
        """Step of the best evaluation, if there was any."""
        return None if self.best is None else self.best[0]

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        if self.patience is None or self.best is None:
            return False
        since_best = [step for step, _ in self.history if step > self.best[0]]
        return len(since_best) >= self.patience

    def load(self, history: list[list[Any]]) -> None:
        """Go on with what a checkpoint kept."""
        self.history = [(int(step), float(loss)) for step, loss in history]
