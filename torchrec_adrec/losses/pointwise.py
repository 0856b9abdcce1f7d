"""Losses of single rows: a click, a value. Each returns this rank's share of a mean.

Shape letters: B rows of this rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.losses.mean import Share, share_of


def click_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Share:
    """Binary cross-entropy; a label that was not observed (NaN) does not count.

    Args:
        logits, labels, weights: (B,).
    """
    logits, target, weights = _counted(logits, labels, weights)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return share_of(losses, weights)


def value_loss(logits: Tensor, values: Tensor, weights: Tensor) -> Share:
    """Poisson quasi-likelihood exp(z) - y z of values >= 0, NaN where not observed.

    Its minimum is the mean, whatever the distribution (Gourieroux et al., Econometrica
    1984), so predicted values add up to the observed ones; it takes zeros and long
    tails, which a squared error of logarithms does not.

    Args:
        logits: (B,), log of the predicted value.
        values, weights: (B,).
    """
    logits, target, weights = _counted(logits, values, weights)
    losses = F.poisson_nll_loss(logits, target, log_input=True, reduction="none")
    return share_of(losses, weights)


def _counted(
    logits: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros in place of the logits and labels that do not count, and their weights.

    Masking the loss alone is not enough: backward would multiply its 0 by exp(z), and
    nothing holds the logit of a row that was not observed below the 88 at which that
    is infinite. The loss stays finite, and the gradient is NaN.
    """
    observed = ~labels.isnan()
    counts = observed & (weights > 0)
    nothing = torch.zeros_like(logits)
    labels = torch.where(counts, labels, nothing)
    return torch.where(counts, logits, nothing), labels, weights * observed
