"""Shows what a checkpoint holds and how two differ.

Both are read tensor by tensor, without a model.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from torchrec_adrec.distributed.checkpoint_files import Checkpoint, shapes, tensors
from torchrec_adrec.modules.embeddings import table_of

SHOWN = 30


@dataclass
class Holding:
    """One parameter, or all of the optimizer's state.

    Attributes:
        name, shape, dtype, bytes, norm: of the parameter; the state has but bytes.
        not_finite: how many of its numbers are not.
        touched: of a table, the share of rows that training ever moved (its row-wise
            Adagrad state is above 0); None elsewhere.
    """

    name: str
    shape: str
    dtype: str
    bytes: int
    norm: float
    not_finite: int
    touched: float | None = None


def inspect(checkpoint: Checkpoint) -> list[Holding]:
    """List every table, every dense parameter, and the optimizer's state as one.

    Raises:
        CheckpointError: it is damaged.
    """
    parameters: dict[str, Holding] = {}
    touched: dict[str, float] = {}
    state = Holding("optimizer state", "", "", 0, 0.0, 0)
    for full_name, tensor in tensors(checkpoint):
        part, _, name = full_name.partition(".")
        if part == "model":
            parameters[name] = _holding(name, tensor)
            continue
        state.bytes += tensor.nbytes
        state.not_finite += _not_finite(tensor)
        # state.model...embedding_bags.user_C1.weight.user_C1.momentum1
        if table_of(name):
            table = name.removeprefix("state.").rsplit(".", 2)[0]
            touched[table] = float((tensor > 0).double().mean())
    for table, share in touched.items():
        parameters[table].touched = share
    return [*sorted(parameters.values(), key=_order), state]


def _order(holding: Holding) -> tuple[bool, str]:
    return holding.touched is None, holding.name


def _holding(name: str, tensor: Tensor) -> Holding:
    shape = " x ".join(f"{size:,}" for size in tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    norm = float(tensor.double().norm())
    return Holding(name, shape, dtype, tensor.nbytes, norm, _not_finite(tensor))


def _not_finite(tensor: Tensor) -> int:
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def headline(checkpoint: Checkpoint) -> str:
    """Say in a line where training was when it saved, and on what data."""
    state = checkpoint.state
    size = state.get("steps_an_epoch")
    place = ""
    if size:
        epoch = (checkpoint.step - 1) // size
        place = f" (epoch {epoch}, step {checkpoint.step - epoch * size} of {size})"
    return (
        f"{state.get('task', 'unknown task')}: step {checkpoint.step}{place}, written"
        f" by {state.get('world_size', 'unknown')} ranks, seed {state.get('seed')},"
        f" schema {state['schema']}, loss {state.get('last_step_loss', math.nan):.6g}"
    )


def inspection(checkpoint: Checkpoint) -> Table:
    """Print `inspect` as a table for a terminal."""
    table = Table(
        *("parameter", "shape", "dtype", "MB", "norm", "rows touched", "not finite"),
        title=headline(checkpoint),
    )
    for holding in inspect(checkpoint):
        table.add_row(
            holding.name,
            holding.shape,
            holding.dtype,
            f"{holding.bytes / 2**20:,.2f}",
            f"{holding.norm:.4g}" if holding.shape or holding.dtype else "",
            "" if holding.touched is None else f"{holding.touched:.1%}",
            f"{holding.not_finite:,}",
        )
    return table


@dataclass(frozen=True)
class Difference:
    """How far one tensor of two checkpoints is apart.

    Attributes:
        name: of the tensor.
        largest: the largest absolute difference of two values.
        relative: the same, divided by the largest value of the first.
        shapes: both, if they differ: there is then nothing to subtract.
    """

    name: str
    largest: float = math.nan
    relative: float = math.nan
    shapes: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints, side by side."""

    only_first: list[str]
    only_second: list[str]
    equal: int
    differ: list[Difference]
    settings: list[str]


def compare(first: Checkpoint, second: Checkpoint) -> Comparison:
    """Compare two checkpoints, tensor by tensor and setting by setting.

    Raises:
        CheckpointError: one is damaged.
    """
    one, two = shapes(first), shapes(second)
    both = one.keys() & two.keys()
    reshaped = [
        Difference(name, shapes=f"{list(one[name])} / {list(two[name])}")
        for name in sorted(both)
        if one[name] != two[name]
    ]
    same = {name for name in both if one[name] == two[name]}
    pairs = zip(tensors(first, same), tensors(second, same), strict=True)
    measured = [_difference(name, a, b) for (name, a), (_, b) in pairs]
    moved = [d for d in measured if d.largest != 0]
    # What is not a number comes first: it is not equal to itself.
    moved.sort(key=lambda d: -d.relative if d.relative == d.relative else -math.inf)
    return Comparison(
        sorted(one.keys() - both),
        sorted(two.keys() - both),
        len(measured) - len(moved),
        [*reshaped, *moved],
        _settings(first.state, second.state),
    )


def _difference(name: str, one: Tensor, two: Tensor) -> Difference:
    if not one.numel() or torch.equal(one, two):
        return Difference(name, 0.0, 0.0)
    largest = float((one.double() - two.double()).abs().max())
    scale = float(one.double().abs().max())
    return Difference(name, largest, largest / scale if scale else math.inf)


def _settings(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """`key: value / value` of all that `state.json` says otherwise, curves left out."""
    a, b = dict(_flat(one)), dict(_flat(two))
    return [
        f"{key}: {a.get(key, 'absent')} / {b.get(key, 'absent')}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, "absent") != b.get(key, "absent")
    ]


def _flat(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("curve", "ledger"):
            yield prefix + key, value


def comparison(first: Checkpoint, second: Checkpoint) -> Table:
    """Print `compare` as a table for a terminal, the largest differences first."""
    result = compare(first, second)
    table = Table(
        *("tensor", "largest difference", "relative"),
        title=f"{result.equal} tensors equal, {len(result.differ)} differ",
    )
    for name in result.only_first:
        table.add_row(name, "only in the first", "")
    for name in result.only_second:
        table.add_row(name, "only in the second", "")
    for difference in result.differ[:SHOWN]:
        relative = "" if difference.shapes else f"{difference.relative:.4g}"
        largest = difference.shapes or f"{difference.largest:.4g}"
        table.add_row(difference.name, largest, relative)
    if len(result.differ) > SHOWN:
        table.add_row(f"and {len(result.differ) - SHOWN} more", "", "")
    for line in result.settings:
        table.add_row(f"setting {line}", "", "")
    return table
