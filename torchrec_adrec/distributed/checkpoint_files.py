"""Finds, opens and reads the files of checkpoints.

    checkpoints/step-00000400/    torch.distributed.checkpoint files, state.json and
                                  hashes.json, the sha256 of all the others

`hashes.json` is written last and the directory then renamed, so a name without `.tmp`
is a checkpoint that was written whole. Nothing is read from a file before its sha256
was compared. Nothing here needs a process group or a model.
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from torchrec_adrec.distributed.checkpoint_hashes import check_file, check_files
from torchrec_adrec.errors import CheckpointError, ManifestError
from torchrec_adrec.runtime.files import HASHES, Origin, load_hashes, sha256

STATE = "state.json"
METADATA = ".metadata"  # which tensor lies where
TENSORS = ".distcp"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its directory.
        state: what `state.json` holds: `step`, `schema`, `world_size`, and what the
            trainer added.
        hashes: sha256 of each of its files, as they were written.
    """

    path: Path
    state: dict[str, Any]
    hashes: dict[str, str]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.state["step"])

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The splits whose rows its weights have seen."""
        # An earlier release knew no others, and did not say so.
        return tuple(self.state.get("trained_on", ("train",)))

    @property
    def origin(self) -> Origin:
        """Its step and a hash of its tensors: what is saved twice has one name.

        `.metadata` is left out, for torch draws a new id for it each time.
        """
        files = sorted(
            pair for pair in self.hashes.items() if pair[0].endswith(TENSORS)
        )
        whole = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        return Origin(step=self.step, weights=whole[:16])


def folder_of(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def latest(folder: Path) -> Checkpoint | None:
    """Open the newest whole checkpoint of a training run, if there is one."""
    paths = _step_folders(folder)
    return open_checkpoint(paths[-1]) if paths else None


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the last `keep` checkpoints and that of the best step.

    Args:
        folder: of all checkpoints of a run.
        keep: how many of the last ones stay.
        best: the best step; None: there was no evaluation.
    """
    best_path = None if best is None else folder_of(folder, best)
    for path in _step_folders(folder)[:-keep]:
        if path != best_path:
            shutil.rmtree(path)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint: read its state and its hashes, but no tensor yet.

    Raises:
        CheckpointError: it is not there, was not written whole, or its `state.json` is
            damaged.
    """
    if (path / STATE).exists() and not (path / HASHES).exists():
        raise CheckpointError(
            f"{path} has no {HASHES}: it was written by a version that did not record"
            " the sha256 of its files, so damage could not be seen; train again"
        )
    try:
        hashes = load_hashes(path)
        check_file(path / STATE, hashes)
        return Checkpoint(path, json.loads((path / STATE).read_text()), hashes)
    except (OSError, ValueError, ManifestError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint: {error}") from None


def attach(checkpoint: Checkpoint, name: str, content: Any) -> None:
    """Add a JSON file to a checkpoint that is whole, hashed like all of its files.

    Args:
        checkpoint: to add to.
        name: of the file; one of that name is replaced.
        content: JSON.
    """
    path = checkpoint.path / name
    # As they are now: another file may have been added since this was opened.
    hashes = load_hashes(checkpoint.path)
    others = {n: h for n, h in hashes.items() if n != name}
    # A stop in between never leaves a file under another file's hash. It may leave one
    # that no hash names: loading then refuses the checkpoint and says so.
    _replace(checkpoint.path / HASHES, others)
    _replace(path, content)
    _replace(checkpoint.path / HASHES, others | {name: sha256(path)})


def _replace(path: Path, content: Any) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.rename(path)


def attachment(checkpoint: Checkpoint, name: str) -> Any:
    """Read a file that `attach` added; None where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    if name not in checkpoint.hashes:
        return None
    check_file(checkpoint.path / name, checkpoint.hashes)
    return json.loads((checkpoint.path / name).read_text())


def _step_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp")


def shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Return name -> shape of every tensor; names begin with `model.` or `optimizer.`.

    Raises:
        CheckpointError: its directory of tensors cannot be read.
    """
    entries = _metadata(checkpoint).state_dict_metadata
    return {
        name: tuple(entry.size)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _metadata(checkpoint: Checkpoint) -> Metadata:
    check_file(checkpoint.path / METADATA, checkpoint.hashes)
    try:
        return FileSystemReader(checkpoint.path).read_metadata()
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{checkpoint.path} is damaged: {error}") from error


def read(checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
    """Fill tensors, sharded in any way or not at all, with what was saved. Collective.

    Raises:
        CheckpointError: a file is damaged, or a tensor is not there or has another
            shape.
    """
    check_files(checkpoint.path, checkpoint.hashes)
    _fill(checkpoint, tensors, alone=False)


def _fill(checkpoint: Checkpoint, tensors: dict[str, Any], alone: bool) -> None:
    # The last line of torch's error is the reason; no line names the checkpoint.
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
    """Read every tensor (or these), one at a time, in the order of their names.

    Tensors are whole: shards of all ranks are put together.

    Raises:
        CheckpointError: a file is damaged.
    """
    check_files(checkpoint.path, checkpoint.hashes, alone=True)
    entries = _metadata(checkpoint).state_dict_metadata
    for name, entry in sorted(entries.items()):
        if isinstance(entry, TensorStorageMetadata) and (
            names is None or name in names
        ):
            whole = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
            _fill(checkpoint, whole, alone=True)
            yield name, whole[name]
