"""Losses over the global batch.

Every loss is the mean over the rows of *all* ranks. Gradients are averaged over ranks
(by DDP and by the sharded tables), so each rank returns its sum times W over the global
count: the average is then the global mean, however unevenly the rows that count are
spread.

Shape letters: B rows of this rank, W ranks, D width.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather as all_gather_with_grad


def global_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over the rows of all ranks, as this rank's share of it.

    Args:
        losses: (B,).
        weights: (B,), 0 for rows that do not count.

    Returns:
        A scalar; its average over ranks is the global mean (0 if nothing counts).
    """
    count = weights.sum().detach().clone()
    dist.all_reduce(count)
    kept = torch.where(weights > 0, losses, torch.zeros_like(losses))
    return (kept * weights).sum() * dist.get_world_size() / count.clamp(min=1e-12)


def click_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy; a label that was not observed (NaN) does not count.

    Args:
        logits, labels, weights: (B,).
    """
    observed = ~labels.isnan()
    target = torch.where(observed, labels, torch.zeros_like(labels))
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return global_mean(losses, weights * observed)


def value_loss(logits: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Poisson quasi-likelihood exp(z) - y z of values >= 0, NaN where not observed.

    Its minimum is the mean, whatever the distribution (Gourieroux et al., Econometrica
    1984), so predicted values add up to the observed ones; it takes zeros and long
    tails, which a squared error of logarithms does not.

    Args:
        logits: (B,), log of the predicted value.
        values, weights: (B,).
    """
    observed = ~values.isnan()
    target = torch.where(observed, values, torch.zeros_like(values))
    losses = F.poisson_nll_loss(logits, target, log_input=True, reduction="none")
    return global_mean(losses, weights * observed)


def in_batch_softmax(
    user: Tensor,
    ad: Tensor,
    ad_ids: Tensor,
    log_q: Tensor,
    anchors: Tensor,
    temperature: float,
) -> Tensor:
    """Softmax over the ads of the global batch, corrected for how often each is drawn.

    For an anchor row i with its ad i: -log softmax_j(u_i . a_j / temperature - log_q_j)
    at j = i, where j runs over the ads of all ranks, except other rows of the same ad
    (accidental hits). Ads reach the batch in proportion to their impressions, so log_q
    (log of the share) is subtracted.

    Source: Yi et al., Sampling-bias-corrected neural modeling, RecSys 2019.

    Args:
        user, ad: (B, D), row i of `ad` is the ad shown to row i of `user`.
        ad_ids: (B,) int64.
        log_q: (B,).
        anchors: (B,), 1 for rows that count (clicked), else 0.
        temperature: divides the scores.
    """
    # The gather must carry gradients: with a plain all_gather the ads of other ranks
    # would be constants, and the dense gradient wrong by several times its size.
    ads = torch.cat(all_gather_with_grad(ad))  # type: ignore[no-untyped-call]  # (W * B, D)
    ids, offsets = _gather(ad_ids), _gather(log_q)  # (W * B,)
    own = torch.arange(len(user), device=user.device) + dist.get_rank() * len(user)
    logits = user @ ads.T / temperature - offsets  # (B, W * B)
    hits = ad_ids[:, None] == ids[None, :]
    hits[torch.arange(len(user), device=user.device), own] = False
    logits = logits.masked_fill(hits, -torch.inf)
    return global_mean(F.cross_entropy(logits, own, reduction="none"), anchors)


def _gather(values: Tensor) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
