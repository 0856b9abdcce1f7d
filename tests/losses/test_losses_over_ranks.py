"""Losses and gradients of two and three ranks are those of one."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from rounding import ORDERS, Results, Rounding
from torch import Tensor

from torchrec_adrec.distributed.process import Process
from torchrec_adrec.losses.anchors import anchors_of
from torchrec_adrec.losses.gather import gather
from torchrec_adrec.losses.mean import Share, global_means
from torchrec_adrec.losses.pointwise import click_loss
from torchrec_adrec.losses.softmax import sampled_softmax
from torchrec_adrec.losses.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_rank")

ROWS, SCALE = 12, 1.001
SCRIPT = """
import torch
from test_losses_over_ranks import FAULTS_OF_RANKS, joint_loss
from torchrec_adrec.distributed.process import process_group

with process_group("cpu") as process:
    results = {{"correct": joint_loss(process)}}
    for name, planted in FAULTS_OF_RANKS.items():
        with planted():
            results[name] = joint_loss(process)
    if process.is_first:
        torch.save(results, {path!r})
"""
Change = Callable[[Tensor], Tensor]


def joint_loss(
    process: Process, order: int | None = None, change: Change | None = None
) -> Results:
    """Click loss, softmax and a teacher over all ranks' rows.

    Args:
        process: this rank.
        order: seed of another order of the rows.
        change: harms the gradients.
    """
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS, 4, generator=generator)
    log_q = torch.rand(ROWS, generator=generator).log()
    # Uneven on purpose: no two ranks have as many clicks and observed labels.
    labels = torch.tensor([1.0] * 7 + [0, 0, 1, 0, torch.nan])
    weights = [torch.randn(3, 4, generator=generator).requires_grad_() for _ in "ua"]
    rows = torch.arange(ROWS)
    if order is not None:
        rows = torch.randperm(ROWS, generator=generator.manual_seed(order))
    rows = rows.chunk(process.world_size)[process.rank]
    user, ad = (features[rows] @ weight.T for weight in weights)
    if change is not None:
        user.register_hook(change)
        ad.register_hook(change)
    clicks = click_loss((user * ad).sum(1), labels[rows], torch.ones(len(rows)))
    anchors = anchors_of((labels[rows] == 1).float())
    contrast = sampled_softmax(user, ad, rows % 5, log_q[rows], anchors, 0.5)
    # The first rank has most rows of which the teacher has a vector.
    known = torch.tensor([0, 1, 2, 3, 4, 6, 11])
    teacher = Teacher(known, torch.randn(7, 3, generator=generator.manual_seed(9)))
    distance = teacher.distance(user, rows, "mse")
    loss = global_means([clicks, contrast, distance]).sum()
    loss.backward()
    sums = [loss.detach().clone(), *(weight.grad for weight in weights)]
    for value in sums:
        assert value is not None
        dist.all_reduce(value)
        value /= process.world_size
    gradients = dict(zip(("user", "ad"), sums[1:], strict=True))
    return {"losses": {"joint": sums[0]}, "gradients": gradients}  # type: ignore[dict-item]


def without_a_row(gradient: Tensor) -> Tensor:
    return gradient.index_fill(0, torch.tensor(3), 0)


def half_scaled(gradient: Tensor) -> Tensor:
    return torch.cat([gradient[: ROWS // 2], gradient[ROWS // 2 :] * SCALE])


def all_scaled(gradient: Tensor) -> Tensor:
    return gradient * SCALE


def mean_of_rank(losses: Tensor, weights: Tensor) -> Share:
    return Share((losses * weights).sum() / weights.sum(), torch.ones(()))


FAULTS = (without_a_row, half_scaled, all_scaled)
LOSSES = "torchrec_adrec.losses"
FAULTS_OF_RANKS = {
    "ads of other ranks without their gradient": lambda: patch(
        f"{LOSSES}.gather.all_gather_single_autograd", lambda ads, *_: gather(ads)
    ),
    "means over a rank's own rows": lambda: patch(
        f"{LOSSES}.mean.dist", SimpleNamespace(get_world_size=lambda: 1)
    ),
    "mean of the means by rank of a teacher's distances": lambda: patch(
        f"{LOSSES}.teacher.share_of", mean_of_rank
    ),
}


def test_ranks_have_the_loss_and_gradient_of_one(
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """They differ by no more than another order of the rows makes; faults do."""
    alone = Process(0, 1, 1, torch.device("cpu"))
    reordered = [joint_loss(alone, order) for order in ORDERS]
    rounding = Rounding("losses over ranks", joint_loss(alone), *reordered)
    for change in FAULTS:
        rounding.sees(change.__name__, joint_loss(alone, change=change))
    for ranks in (2, 3):
        path = tmp_path / f"{ranks}.pt"
        done = ranks_script(ranks, SCRIPT.format(path=str(path)))
        assert done.returncode == 0, done.stderr
        results = torch.load(path)
        rounding.holds(f"{ranks} ranks", results.pop("correct"))
        for name, wrong in results.items():
            rounding.sees(f"{name}, {ranks} ranks", wrong)
