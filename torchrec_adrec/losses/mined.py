"""Mined negatives: ads of a row's own list, which are negatives of that row alone.

A list holds the C_i ads between two ranks of what an earlier run retrieves for the row.
A step draws m of them, each equally likely, so each is expected m / C_i times, and the
sum of e^s over the draws times C_i / m is, in expectation, the sum over the list. It is
added to the sum over the ads that all rows share (`losses.softmax`):

    -log( e^s_i / (e^s_i + sum_j e^s_j / n_j + C_i / m sum_h e^s_h) )

What is shared has the catalog for its expectation, so the loss is the softmax over the
catalog in which the ads of the row's list count twice. As columns of all rows, mined
ads would need another correction for each row: an ad is likely to be drawn for the user
whose list holds it, and as likely as its share of all lists for the others. Without a
correction the ads that stand in many lists would be pushed down for that alone.

The softmax multiplies all rows with all ads, which this sum does not, so it is made
apart and enters the softmax as one more number of each row.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Mined(NamedTuple):
    """The mined negatives of a rank's rows.

    Attributes:
        vectors: (B, m, D).
        log_q: (B, m), -log C_i, the same for all of a row; infinite for a row that has
            no such negatives.
    """

    vectors: Tensor
    log_q: Tensor


def mined_log_odds(
    rows: Tensor, positives: Tensor, mined: Mined, is_corrected: bool
) -> Tensor:
    """Log of the sum over each row's mined ads divided by the term of its clicked ad.

    Args:
        rows: (A, D), already divided by the temperature.
        positives: (A,) the logits of the clicked ads.
        mined: of the same A rows.
        is_corrected: whether a draw counts C_i / m; else it counts 1.

    Returns:
        (A,) float32; -infinity for a row without mined ads.
    """
    logits = (rows.float()[:, None] * mined.vectors.float()).sum(dim=2)
    # The correction is that of the row, outside of the sum: a sum over logits that are
    # all -infinity would have NaN for its gradient.
    log_q, draws = mined.log_q[:, 0], mined.log_q.shape[1]
    expected = log_q + math.log(draws)
    correction = torch.where(log_q.isinf() | is_corrected, expected, 0.0)
    return logits.logsumexp(dim=1) - correction - positives.float()


class Joined(NamedTuple):
    """What a further term in each row's sum makes of its loss.

    Attributes:
        losses: (A,) -log p with the term.
        shares: (A,) what all gradients but the term's are multiplied by; the term's is
            the rest to 1.
    """

    losses: Tensor
    shares: Tensor


def join(losses: Tensor, log_odds: Tensor | None) -> Joined:
    """Add a term to the sums of rows whose loss is known.

    With L = -log p and the term's log odds t to the clicked ad's, the new loss is
    log(e^L + e^t), of which the share sigmoid(L - t) is the old one's.

    Args:
        losses: (A,) -log p of the rows' targets.
        log_odds: (A,); None: no term.
    """
    if log_odds is None:
        return Joined(losses, torch.ones_like(losses))
    joined = torch.logaddexp(losses, log_odds)
    return Joined(joined, torch.sigmoid(losses - log_odds))
