"""Faults to plant into training, and towers without kinks to plant them into.

A ReLU whose input is 1e-7 off turns its gradient on or off: differences of 2e-3 in
weights that are no fault. So what compares weights after many steps trains smooth ones.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_adrec.models.rankers.base import RankerHead
from torchrec_adrec.models.tower import BiasHead, TowerHead
from torchrec_adrec.tasks.ranking import RankingTask
from torchrec_adrec.tasks.retrieval import RetrievalTask

STEP, ROW, SCALE = 5, 3, 1.001  # the step and the row that are harmed, the wrong scale

Fault = Callable[[nn.Module], None]


def smooth(model: nn.Module) -> None:
    """Replace every ReLU, in place; there must be some, and none may be left."""
    kinks = nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ReLU)
    ]
    assert places
    for parent, name in places:
        setattr(parent, name, nn.SiLU())
    assert not any(isinstance(module, kinks) for module in model.modules())


def drop_a_row(model: nn.Module) -> None:
    """One row's gradient is lost in one step."""

    def without(gradient: Tensor, step: int) -> Tensor:
        return (
            gradient.index_fill(0, torch.tensor(ROW), 0) if step == STEP else gradient
        )

    _change_gradients(model, without)


def scale_a_share(model: nn.Module) -> None:
    """The gradients of half the rows, a rank's share of two, are 1.001 times right."""

    def scaled(gradient: Tensor, step: int) -> Tensor:
        factor = torch.ones(len(gradient), *[1] * (gradient.dim() - 1))
        factor[len(gradient) // 2 :] = SCALE
        return gradient * factor

    _change_gradients(model, scaled)


def scale_the_loss(model: nn.Module) -> None:
    """The loss is 1.001 times right: Adam and Adagrad, blind to scales, hide it."""
    _task(model).loss.register_forward_hook(lambda _module, _inputs, loss: loss * SCALE)


def lose_an_update(of: str) -> Fault:
    """What one step did to one parameter is lost; `of` ends its name."""

    def plant(model: nn.Module) -> None:
        held: list[Tensor] = []
        names = [name for name in model.state_dict() if name.endswith(of)]
        assert len(names) == 1, names

        def local_values() -> Tensor:
            value = model.state_dict()[names[0]]
            shards = getattr(value, "local_shards", None)
            return shards()[0].tensor if shards else value  # type: ignore[no-any-return]

        @torch.no_grad()
        def look(step: int) -> None:
            if step == STEP:
                held.append(local_values().clone())
            if step == STEP + 1:
                local_values().copy_(held[0])

        _at_every_step(model, look)

    return plant


def faults(table: str) -> dict[str, Fault]:
    """All of them, by what they do; `table` loses an update."""
    return {
        "one row's gradient dropped in one step": drop_a_row,
        "half the rows' gradients times 1.001": scale_a_share,
        "the loss times 1.001": scale_the_loss,
        f"an update of {table} lost in one step": lose_an_update(table),
    }


def _task(model: nn.Module) -> RetrievalTask | RankingTask:
    tasks = (RetrievalTask, RankingTask)
    return next(module for module in model.modules() if isinstance(module, tasks))


def _at_every_step(model: nn.Module, do: Callable[[int], None]) -> None:
    """Before the forward pass of every step of training, counted from 1."""
    steps = 0

    def count(module: nn.Module, _inputs: Any) -> None:
        nonlocal steps
        if module.training:
            steps += 1
            do(steps)

    _task(model).register_forward_pre_hook(count)


def _change_gradients(
    model: nn.Module, change: Callable[[Tensor, int], Tensor]
) -> None:
    """What flows back into the dense parts, whose first dimension is the rows'."""
    now = 0

    def set_step(step: int) -> None:
        nonlocal now
        now = step

    def watch(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda gradient, step=now: change(gradient, step))

    _at_every_step(model, set_step)
    for module in model.modules():
        if isinstance(module, (TowerHead, BiasHead, RankerHead)):
            module.register_forward_hook(watch)
