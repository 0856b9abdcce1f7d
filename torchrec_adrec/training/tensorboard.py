"""TensorBoard of the first rank."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger:
    """Writes scalars below a task's name, or nothing on the other ranks."""

    def __init__(self, task: str, writer: SummaryWriter | None) -> None:
        self.task, self.writer = task, writer

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Scalars of a step by their names."""
        if self.writer is not None:
            for name, value in figures.items():
                self.writer.add_scalar(f"{self.task}/{name}", value, step)


@contextmanager
def tensorboard_logger(
    task: str, folder: Path, is_first: bool, done: int
) -> Iterator[TensorBoardLogger]:
    """Open it; steps behind `done`, which a resumed run repeats, are purged."""
    if not is_first:
        yield TensorBoardLogger(task, None)
        return
    with SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1) as writer:
        yield TensorBoardLogger(task, writer)
