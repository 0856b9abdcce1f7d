"""The files of checkpoints: which there are, which is best, what each one holds.

    checkpoints/step-00000400/    torch.distributed.checkpoint files + state.json
    checkpoints/best.json         the step with the best figures, and these

`state.json` is written last and the directory then renamed, so a name without `.tmp`
is a checkpoint that was written whole. Nothing here needs a process group or a model.
"""

import json
import pickle
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from torchrec_adrec.errors import CheckpointError

STATE = "state.json"
BEST = "best.json"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its directory.
        state: what `state.json` holds: `step`, `schema`, `world_size`, and what the
            trainer added.
    """

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.state["step"])


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return folder / f"step-{step:08d}"


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a training run, if there is one."""
    steps = _steps(folder)
    return open_checkpoint(steps[-1]) if steps else None


def best(folder: Path) -> Checkpoint | None:
    """The checkpoint with the best figures, if any was judged.

    Raises:
        CheckpointError: it was judged and is gone.
    """
    mark = best_mark(folder)
    return open_checkpoint(folder_of(folder, mark["step"])) if mark else None


def best_mark(folder: Path) -> dict[str, Any] | None:
    """What `best.json` says: `step` and the figures that made it the best."""
    try:
        return dict(json.loads((folder / BEST).read_text()))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{folder / BEST} is damaged: {error}") from None


def mark_best(folder: Path, step: int, figures: Mapping[str, float]) -> None:
    """Name the best checkpoint, which `prune` then spares."""
    partial = folder / f"{BEST}.partial"
    partial.write_text(json.dumps({"step": step, **figures}) + "\n")
    partial.rename(folder / BEST)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints and the best one."""
    mark = best_mark(folder)
    spared = folder_of(folder, mark["step"]) if mark else None
    for old in _steps(folder)[:-keep]:
        if old != spared:
            shutil.rmtree(old)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read what a checkpoint says of itself.

    Raises:
        CheckpointError: it is not there or was not written whole.
    """
    try:
        return Checkpoint(path, json.loads((path / STATE).read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint: {error}") from None


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp")


def shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Name and shape of every tensor; `model.` or `optimizer.` stands in front.

    Raises:
        CheckpointError: its directory of tensors cannot be read.
    """
    found = _metadata(checkpoint).state_dict_metadata
    return {
        name: tuple(entry.size)
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _metadata(checkpoint: Checkpoint) -> Metadata:
    try:
        return FileSystemReader(checkpoint.path).read_metadata()
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{checkpoint.path} is damaged: {error}") from error


def read(checkpoint: Checkpoint, tensors: dict[str, Any], alone: bool = False) -> None:
    """Fill tensors, sharded in any way or not at all, with what was saved.

    Args:
        alone: do not ask other ranks.

    Raises:
        CheckpointError: a tensor is not there, has another shape, or is damaged.
    """
    try:
        state_dict_loader.load(tensors, checkpoint_id=checkpoint.path, no_dist=alone)
    except (OSError, RuntimeError, ValueError, CheckpointException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{checkpoint.path} cannot be loaded: {reason}"
        ) from error


def tensors(
    checkpoint: Checkpoint, names: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor (or these), one at a time, by name; shards are put together.

    Raises:
        CheckpointError: one is damaged.
    """
    entries = _metadata(checkpoint).state_dict_metadata
    for name, entry in sorted(entries.items()):
        if isinstance(entry, TensorStorageMetadata) and (
            names is None or name in names
        ):
            found = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
            read(checkpoint, found, alone=True)
            yield name, found[name]
