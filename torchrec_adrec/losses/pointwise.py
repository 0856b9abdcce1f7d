"""Losses of single rows, of a click and of a value, as this rank's share of a mean.

Shape letters: B rows of this rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.losses.mean import Share, share_of


def click_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Share:
    """Binary cross-entropy; a label that was not observed (NaN) does not count.

    Args:
        logits: (B,).
        labels: (B,), 0, 1 or NaN.
        weights: (B,); rows of weight 0 do not count.
    """
    logits, labels, weights = _counted(logits, labels, weights)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return share_of(losses, weights)


def value_loss(logits: Tensor, values: Tensor, weights: Tensor) -> Share:
    """Poisson quasi-likelihood exp(z) - y z of values >= 0, NaN where not observed.

    Its minimum is the mean, whatever the distribution (Gourieroux et al., Econometrica
    1984), so predicted values add up to the observed ones; it takes zeros and long
    tails, which a squared error of logarithms does not.

    Args:
        logits: (B,), log of the predicted value.
        values: (B,).
        weights: (B,); rows of weight 0 do not count.
    """
    logits, values, weights = _counted(logits, values, weights)
    losses = F.poisson_nll_loss(logits, values, log_input=True, reduction="none")
    return share_of(losses, weights)


def _counted(
    logits: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and weights, with 0 in the place of all that must not count.

    Masking the loss alone is not enough: backward would multiply its 0 by exp(z), and
    nothing holds the logit of a row that was not observed below the 88 at which that
    is infinite. The loss would stay finite, and the gradient would be NaN.
    """
    # Rows of weight 0 count for nothing either, whatever their logits are.
    observed = ~labels.isnan()
    counts = observed & (weights > 0)
    zero = torch.zeros_like(logits)
    labels = torch.where(counts, labels, zero)
    return torch.where(counts, logits, zero), labels, weights * observed
