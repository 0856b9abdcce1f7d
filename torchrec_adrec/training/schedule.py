"""Says after which steps a run logs, evaluates and saves."""

from dataclasses import dataclass

from torchrec_adrec.config.train import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """What is done after a step, from its number alone: so all ranks do the same.

    Args:
        steps: the number of the last step; the first one is 1.
        accumulate: steps whose dense gradients make one dense update.
        train: says how often.
    """

    steps: int
    accumulate: int
    train: TrainConfig

    def is_last(self, step: int) -> bool:
        """Whether no step comes after it."""
        return step == self.steps

    def is_whole(self, step: int) -> bool:
        """Whether no dense gradient waits for further steps: it would not be saved."""
        return self.is_last(step) or step % self.accumulate == 0

    def logs_at(self, step: int) -> bool:
        """Whether the loss curve gets a point."""
        return self.is_last(step) or step % self.train.log_every == 0

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due: at the first whole step in every
        `checkpoint_every`.
        """
        return self._is_first_whole(self.train.checkpoint_every, step)

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due: at the end too, if there are any."""
        every = self.train.evaluate_every
        return bool(every) and (self.is_last(step) or self._is_first_whole(every, step))

    def _is_first_whole(self, every: int, step: int) -> bool:
        # A multiple of `every` need not be whole. The next whole step is less than
        # `accumulate` steps later, and there is but one in that span.
        return self.is_whole(step) and step >= every and step % every < self.accumulate
