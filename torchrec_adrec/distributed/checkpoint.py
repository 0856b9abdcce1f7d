"""Checkpoints: one directory a step, whole or not there, readable at any world size.

    checkpoints/step-00000400/    torch.distributed.checkpoint files + state.json

`state.json` is written last and the directory then renamed, so a name without `.tmp`
is a checkpoint that was written whole.
"""

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.schema import Schema


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its directory.
        state: what `state.json` holds: `step`, `schema`, and what the trainer added.
    """

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.state["step"])


def save(
    folder: Path,
    process: Process,
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    schema: Schema,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Save model, optimizer state and `state` as `step-N`; keep the last `keep`.

    Collective: every rank calls it at the same step.
    """
    final = folder / f"step-{state['step']:08d}"
    partial = final.with_suffix(".tmp")
    if process.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
    process.barrier()
    tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state_dict_saver.save(tensors, checkpoint_id=partial)
    if process.is_first:
        whole = state | {"schema": schema.fingerprint}
        (partial / "state.json").write_text(json.dumps(whole) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(old)
    process.barrier()
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a training run, if there is one."""
    steps = _steps(folder)
    return open_checkpoint(steps[-1]) if steps else None


def open_checkpoint(path: Path) -> Checkpoint:
    """Read what a checkpoint says of itself.

    Raises:
        CheckpointError: it is not there or was not written whole.
    """
    try:
        return Checkpoint(path, json.loads((path / "state.json").read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint: {error}") from None


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp")


def load(
    checkpoint: Checkpoint,
    model: nn.Module,
    schema: Schema,
    optimizer: CombinedOptimizer | None = None,
) -> None:
    """Load into a model, sharded in any way or not at all, and into its optimizer.

    Raises:
        CheckpointError: other columns, or a key that is only here or only there.
    """
    _check_schema(checkpoint, schema)
    tensors: dict[str, Any] = {"model": model.state_dict()}
    if optimizer is not None:
        tensors["optimizer"] = optimizer.state_dict()
    _check_keys(checkpoint, model)
    _read(checkpoint, tensors)
    model.load_state_dict(tensors["model"])
    if optimizer is not None:
        optimizer.load_state_dict(tensors["optimizer"])


def load_tables(
    checkpoint: Checkpoint, model: nn.Module, schema: Schema, origin: dict[str, str]
) -> None:
    """Load single tables from the checkpoint of another model (warm start).

    Args:
        origin: this model's parameter name -> the checkpoint's.

    Raises:
        CheckpointError: other columns, or a table that the checkpoint does not hold.
    """
    _check_schema(checkpoint, schema)
    own = model.state_dict()
    tables = {f"model.{origin[name]}": own[name] for name in origin}
    _read(checkpoint, tables)
    model.load_state_dict(own)


def _read(checkpoint: Checkpoint, tensors: dict[str, Any]) -> None:
    try:
        state_dict_loader.load(tensors, checkpoint_id=checkpoint.path)
    except (OSError, RuntimeError, ValueError, CheckpointException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{checkpoint.path} cannot be loaded: {reason}"
        ) from error


def _check_schema(checkpoint: Checkpoint, schema: Schema) -> None:
    found = checkpoint.state["schema"]
    if found != schema.fingerprint:
        raise CheckpointError(
            f"{checkpoint.path} was trained on columns {found}, the data's are"
            f" {schema.fingerprint}; train again or use the data it was trained on"
        )


def _check_keys(checkpoint: Checkpoint, model: nn.Module) -> None:
    try:
        metadata = FileSystemReader(checkpoint.path).read_metadata()
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{checkpoint.path} is damaged: {error}") from error
    keys = metadata.state_dict_metadata
    saved = {key.removeprefix("model.") for key in keys if key.startswith("model.")}
    wanted = set(model.state_dict())
    if saved != wanted:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model; only in the checkpoint:"
            f" {sorted(saved - wanted)[:5]}, only in the model:"
            f" {sorted(wanted - saved)[:5]}"
        )
