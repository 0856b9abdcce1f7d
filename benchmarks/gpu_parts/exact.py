"""The softmax of a device against the plain softmax, all logits at once, in float64."""

import math
from argparse import Namespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.distributed.process import Process
from torchrec_adrec.losses import device_blocks
from torchrec_adrec.losses.chunked import Candidates
from torchrec_adrec.losses.device_blocks import large_block_cross_entropy
from torchrec_adrec.losses.excluded import ExcludedCandidates

ROWS, UNIFORM, ADS, HISTORY = 700, 300, 400, 5
BLOCK = 1 << 18  # several blocks also of these few rows


def measure(process: Process, args: Namespace) -> dict[str, Any]:
    """Largest errors of loss and gradients, relative to the largest value."""
    before, device_blocks.BLOCK = device_blocks.BLOCK, BLOCK
    try:
        return {
            f"D={width} T={temperature} {'bfloat16' if low else 'float32'}": _errors(
                width, temperature, low, process.device
            )
            for width in (64, 256)
            for temperature in (0.02, 0.05)
            for low in (False, True)
        }
    finally:
        device_blocks.BLOCK = before


def _errors(
    width: int, temperature: float, low: bool, device: torch.device
) -> dict[str, float]:
    """With logQ, accidental hits, histories, uniform negatives, uneven anchors."""
    torch.manual_seed(0)
    count = 2 * ROWS + UNIFORM  # two ranks' rows, and ads that belong to no row
    user = F.normalize(torch.randn(ROWS, width, dtype=torch.float64), dim=1)
    ad = F.normalize(torch.randn(count, width, dtype=torch.float64), dim=1)
    ids = torch.randint(ADS, (count,))
    log_q = torch.rand(count, dtype=torch.float64).log() + math.log(count - 1)
    anchors = (torch.rand(ROWS) < 0.3).nonzero()[:, 0]
    history = torch.randint(-1, ADS, (len(anchors), HISTORY))
    targets = anchors + ROWS  # this rank is the second
    weights = torch.rand(len(anchors), dtype=torch.float64)
    exact = _plain(
        user, ad, ids, log_q, anchors, targets, weights, history, temperature
    )
    u, a = (x.float().to(device).requires_grad_() for x in (user, ad))
    columns = Candidates(a, log_q.float().to(device), ids.to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        loss = large_block_cross_entropy(
            u.index_select(0, anchors.to(device)) / temperature,
            columns,
            targets.to(device),
            weights.float().to(device),
            ExcludedCandidates(history.to(device), ids.to(device)),
        )
    grads = torch.autograd.grad(loss, (u, a))
    names = ("loss", "gradient of users", "gradient of ads")
    return {
        name: float(
            f"{((actual.cpu() - expected).abs().max() / expected.abs().max()):.2g}"
        )
        for name, actual, expected in zip(
            names, (loss.detach(), *grads), exact, strict=True
        )
    }


def _plain(
    user: Tensor,
    ad: Tensor,
    ids: Tensor,
    log_q: Tensor,
    anchors: Tensor,
    targets: Tensor,
    weights: Tensor,
    history: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    user, ad = user.requires_grad_(), ad.requires_grad_()
    logits = user[anchors] @ ad.T / temperature
    expected = logits.gather(1, targets[:, None])
    hidden = ids[targets][:, None] == ids
    hidden |= (history[:, :, None] == ids).any(dim=1)
    logits = (logits - log_q).masked_fill(hidden, -torch.inf)
    logits = logits.scatter(1, targets[:, None], expected)
    losses = F.cross_entropy(logits, targets, reduction="none")
    loss = (losses * weights).sum()
    for_user, for_ad = torch.autograd.grad(loss, (user, ad))
    return loss.detach(), for_user, for_ad
