"""The hardest negatives of a row: those with the largest logits.

A sum over all of a batch's ads is mostly one of ads that nobody would confuse. Which
number of them stays may fall from step to step (a curriculum: Bengio et al., ICML
2009): ads that look hardest to a model that has learnt nothing are drawn by chance.
"""

import math

import torch
from torch import Tensor


def hardest_now(hardest: int, total: int, risen: float) -> int:
    """How many of all negatives stay: all at first, in the end the hardest alone.

    The number falls geometrically, so that each step leaves out the same share.

    Args:
        hardest: the number in the end.
        total: the number of all candidates.
        risen: the share of the way, from 0 to 1.
    """
    least = min(hardest, total)
    return round(total * math.pow(least / total, risen))


def below_hardest(logits: Tensor, count: int) -> Tensor:
    """(M, N) bool, true where `count` others of the row (M, N) are larger."""
    least = logits.topk(min(count, logits.shape[1]), dim=1).values[:, -1:]
    return logits < least


def keep_hardest(logits: Tensor, target: Tensor, count: int) -> None:
    """Set all negatives but the `count` largest of each row to -inf, in place.

    Args:
        logits: (M, N), -inf at what is no negative.
        target: (M,) the candidate of each row that stays whatever its logit.
        count: of negatives.
    """
    column = target[:, None]
    target_logits = logits.gather(1, column)
    logits.scatter_(1, column, -torch.inf)
    logits.masked_fill_(below_hardest(logits, count), -torch.inf)
    logits.scatter_(1, column, target_logits)
