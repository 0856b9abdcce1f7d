"""Decides when to stop: once the validation loss no longer falls."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EarlyStopping:
    """The validation losses so far, kept in every checkpoint.

    Attributes:
        patience: evaluations without a better one after which to stop; None: never.
        history: (step, loss) of every evaluation.
    """

    patience: int | None
    history: list[tuple[int, float]] = field(default_factory=list)

    def add(self, step: int, loss: float) -> bool:
        """Take an evaluation, and say whether it is the best so far."""
        # Strictly below, so of equal ones the first stays the best, as in `best`.
        is_best = all(loss < earlier for _, earlier in self.history)
        self.history.append((step, loss))
        return is_best

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best evaluation, of equal ones the first."""
        return min(self.history, key=lambda pair: pair[1], default=None)

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
