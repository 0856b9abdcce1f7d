"""Saves and loads checkpoints of a sharded model, at any world size.

A checkpoint is whole or it does not exist.

Loading puts every row where the new plan has it. Measured on gloo, every tensor
compared (docs/checkpoints.md): any mixture of table_wise and row_wise goes into any
other, on 1, 2 and 4 ranks, exactly. A column_wise table under row-wise Adagrad has one
state per slice, so only its weights go into another plan: what does not fit is refused
by name.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from torchrec_adrec.distributed.checkpoint_files import (
    STATE,
    Checkpoint,
    Shape,
    folder_of,
    latest,
    open_checkpoint,
    prune,
    read,
    shapes,
)
from torchrec_adrec.distributed.checkpoint_hashes import hash_files
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.modules.embeddings import BIAS_SUFFIX, table_of
from torchrec_adrec.runtime.files import save_hashes
from torchrec_adrec.schema import Schema

__all__ = [
    "Checkpoint",
    "folder_of",
    "latest",
    "load",
    "load_tables",
    "load_weights",
    "open_checkpoint",
    "save",
]
SHOWN = 8  # names in a message


def save(
    folder: Path,
    process: Process,
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    schema: Schema,
    state: dict[str, Any],
    keep: int,
    best: int | None = None,
) -> Path:
    """Save model, optimizer state and `state` as `step-N`; keep the last `keep`.

    Collective: every rank calls it at the same step.

    Args:
        folder: of all checkpoints of a run.
        process: this rank.
        model: sharded.
        optimizer: of the model.
        schema: of the data; its fingerprint is saved.
        state: JSON; `step` must be in it.
        keep: how many of the last checkpoints stay.
        best: the step that is the best so far, this one or an earlier one; it is kept
            beside the last ones.
    """
    final = folder_of(folder, state["step"])
    # Written under another name and renamed at the end: who finds the final name, finds
    # a checkpoint that was written whole.
    partial = final.with_suffix(".tmp")
    if process.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
    process.barrier()
    tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state_dict_saver.save(tensors, checkpoint_id=partial)
    if process.is_first:
        whole = state | {
            "schema": schema.fingerprint,
            "world_size": process.world_size,
        }
        (partial / STATE).write_text(json.dumps(whole) + "\n")
    hashes = hash_files(partial, process)
    if process.is_first:
        save_hashes(partial, hashes)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        prune(folder, keep, best)
    process.barrier()
    return final


def load(
    checkpoint: Checkpoint,
    model: nn.Module,
    schema: Schema,
    optimizer: CombinedOptimizer | None = None,
) -> None:
    """Load into a model, sharded in any way or not at all, and into its optimizer.

    Collective where the model is sharded.

    Args:
        checkpoint: to be loaded.
        model: of the same task and settings.
        schema: of the data; the checkpoint's must be the same.
        optimizer: None: of no interest, as in evaluation.

    Raises:
        CheckpointError: a file is damaged; other columns; a tensor that only the model
            or only the checkpoint has, or that has another shape.
    """
    _check_schema(checkpoint, schema)
    # torch leaves a tensor that a checkpoint lacks as it is and says nothing: names and
    # shapes are compared before.
    tensors: dict[str, Any] = {"model": model.state_dict()}
    if optimizer is not None:
        tensors["optimizer"] = optimizer.state_dict()
    _check_names_and_shapes(checkpoint, tensors)
    read(checkpoint, tensors)
    model.load_state_dict(tensors["model"])
    if optimizer is not None:
        optimizer.load_state_dict(tensors["optimizer"])


def load_tables(
    checkpoint: Checkpoint, model: nn.Module, schema: Schema, origin: dict[str, str]
) -> None:
    """Load single tables from the checkpoint of another model (warm start).

    Args:
        checkpoint: of the other model.
        model: sharded.
        schema: of the data; the checkpoint's must be the same.
        origin: this model's parameter name -> the checkpoint's.

    Raises:
        CheckpointError: a file is damaged; other columns, or a table is missing.
    """
    _check_schema(checkpoint, schema)
    parameters = model.state_dict()
    remaining = dict(origin)
    while remaining:
        # Two tables may begin with one of the checkpoint, which is read once for each.
        once = {source: name for name, source in reversed(remaining.items())}
        read(checkpoint, {f"model.{s}": parameters[n] for s, n in once.items()})
        for name in once.values():
            del remaining[name]
    model.load_state_dict(parameters)


def load_weights(
    checkpoint: Checkpoint,
    model: nn.Module,
    vocabulary: Mapping[str, str],
    allow_new: bool = False,
) -> list[str]:
    """Start with the weights of another run; optimizers begin anew. Collective.

    Args:
        checkpoint: of the other run.
        model: sharded.
        vocabulary: feature -> hash of its values' ids, of the data to train on. The
            same ids mean other things in another vocabulary.
        allow_new: leave what does not fit as it was initialised. What only the
            checkpoint holds is an error all the same.

    Returns:
        The parameters that were left as initialised.

    Raises:
        CheckpointError: a file is damaged; they differ, all differences named.
    """
    parameters = model.state_dict()
    saved, expected = shapes(checkpoint), _shapes({"model": parameters})
    surplus = sorted(n for n in saved if n.startswith("model.") and n not in expected)
    new = sorted(n for n in expected if saved.get(n) != expected[n])
    reordered = _tables_with_other_ids(
        checkpoint, vocabulary, expected.keys() - set(new)
    )
    if surplus or ((new or reordered) and not allow_new):
        raise CheckpointError(
            f"{checkpoint.path} does not fit: {_listed('only there', surplus)};"
            f" {_differences(saved, {n: expected[n] for n in new})};"
            f" {_listed('ids of another vocabulary', reordered)}. Start without it"
            + ("" if surplus else ", or leave these as initialised: --allow-new-tables")
        )
    initialised = {name.removeprefix("model.") for name in (*new, *reordered)}
    read(
        checkpoint,
        {f"model.{n}": p for n, p in parameters.items() if n not in initialised},
    )
    model.load_state_dict(parameters)
    return sorted(initialised)


def _tables_with_other_ids(
    checkpoint: Checkpoint, vocabulary: Mapping[str, str], names: Iterable[str]
) -> list[str]:
    """Tables of features whose ids stand for other values than in the checkpoint."""
    saved: dict[str, str] = checkpoint.state.get("vocabulary", {})
    features = saved.keys() | vocabulary.keys()
    changed = {f for f in features if saved.get(f) != vocabulary.get(f)}
    return sorted(n for n in names if _feature(n) in changed)


def _feature(name: str) -> str:
    """The feature of a table's parameter: ...embedding_bags.user_C1.weight -> C1.

    The table of its bias has the same; what is no table has an empty one.
    """
    return table_of(name).partition("_")[2].removesuffix(BIAS_SUFFIX)


def _check_schema(checkpoint: Checkpoint, schema: Schema) -> None:
    saved = checkpoint.state["schema"]
    if saved != schema.fingerprint:
        raise CheckpointError(
            f"{checkpoint.path} was trained on columns {saved}, the data's are"
            f" {schema.fingerprint}; train again or use the data it was trained on"
        )


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    """Name and shape of every tensor on any rank."""
    flat, _ = flatten_state_dict(dict(tensors))
    local = {name: tuple(value.size()) for name, value in flat.items()}
    if not dist.is_initialized():
        return local
    # An optimizer knows only the tables whose rows this rank holds.
    by_rank: list[dict[str, Shape]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, local)
    return {name: shape for part in by_rank for name, shape in part.items()}


def _check_names_and_shapes(checkpoint: Checkpoint, tensors: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that has other tensors or shapes in any part.

    Args:
        checkpoint: to be loaded.
        tensors: part ("model", "optimizer") -> its state.
    """
    all_expected, all_saved = _shapes(tensors), shapes(checkpoint)
    for part in tensors:
        expected = {n: s for n, s in all_expected.items() if n.startswith(f"{part}.")}
        saved = {n: s for n, s in all_saved.items() if n.startswith(f"{part}.")}
        if expected != saved:
            surplus = sorted(saved.keys() - expected.keys())
            raise CheckpointError(
                f"{checkpoint.path} does not fit the {part};"
                f" {_listed('only in the checkpoint', surplus)};"
                f" {_differences(saved, expected)}{_advice(part, expected, saved)}"
            )


def _differences(saved: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str:
    missing = sorted(expected.keys() - saved.keys())
    other = [
        f"{name} {list(saved[name])} there, {list(expected[name])} here"
        for name in sorted(expected.keys() & saved.keys())
        if saved[name] != expected[name]
    ]
    return f"{_listed('only here', missing)}; {_listed('other shapes', other)}"


def _advice(
    part: str, expected: Mapping[str, Shape], saved: Mapping[str, Shape]
) -> str:
    if part == "model" or expected.keys() != saved.keys():
        return ""
    return (
        ". A column_wise table has a row-wise Adagrad state for each slice: train on"
        " with the number of slices it was saved with, or start anew from its weights"
        " (--from)"
    )


def _listed(title: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{title}: {', '.join(names[:SHOWN]) or 'nothing'}{more}"
