"""Writes scalars for TensorBoard, on the first rank."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger:
    """Writes scalars below a task's name, or nothing on the other ranks."""

    def __init__(self, task: str, writer: SummaryWriter | None) -> None:
        self.task, self.writer = task, writer

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write scalars of a step by their names."""
        if self.writer is not None:
            for name, value in figures.items():
                self.writer.add_scalar(f"{self.task}/{name}", value, step)


@contextmanager
def tensorboard_logger(
    task: str, folder: Path, is_first: bool, last_step: int
) -> Iterator[TensorBoardLogger]:
    """Open the log of a run, to go on with it.

    Args:
        task: stands in front of every name.
        folder: of the stage; the log is its `tensorboard`.
        is_first: whether this rank writes.
        last_step: the last step that counts. A resumed run takes the later ones again,
            so what the log holds of them is purged.
    """
    # Figures are the same on every rank: one rank writes them for all.
    if not is_first:
        yield TensorBoardLogger(task, None)
        return
    first_purged = last_step + 1
    with SummaryWriter(str(folder / "tensorboard"), purge_step=first_purged) as writer:
        yield TensorBoardLogger(task, writer)
