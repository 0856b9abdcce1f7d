"""Losses of pairs: the clicked ad should score above another one. For comparison.

Every anchor meets `PAIRS` ads drawn at random from those of the global batch; draws of
the anchor's own ad do not count. Scores are not corrected: ads are drawn as often as
they are shown, so popular ones are pushed down more often.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.losses.anchors import Anchors
from torchrec_adrec.losses.gather import gather_ads
from torchrec_adrec.losses.mean import Share

PAIRS = 16


def bpr(margins: Tensor) -> Tensor:
    """-log sigmoid(positive - negative): Rendle et al., BPR, UAI 2009.

    Args:
        margins: score of the clicked ad minus that of the other, over the temperature.
    """
    return -F.logsigmoid(margins)


def triplet(margins: Tensor) -> Tensor:
    """Hinge max(0, 1 - positive + negative): Schroff et al., FaceNet, CVPR 2015.

    The margins are divided by the temperature, so in units of the scores themselves the
    temperature is the margin that is asked for.
    """
    return F.relu(1 - margins)


PAIR_LOSSES = {"bpr": bpr, "triplet": triplet}


def pairwise_loss(
    loss: str,
    user: Tensor,
    ad: Tensor,
    ad_ids: Tensor,
    anchors: Anchors,
    temperature: float | Tensor,
) -> Share:
    """This rank's share of the mean, over the anchors, of the mean over their pairs.

    Args:
        loss: a name in `PAIR_LOSSES`.
        user: (B, D).
        ad: (N, D); row i < B is the ad shown to row i of `user`.
        ad_ids: (N,) int64.
        anchors: the clicked rows.
        temperature: divides the scores.
    """
    candidates, _ = gather_ads(ad, ad_ids)
    rows = anchors.rows
    drawn = torch.randint(len(candidates.ids), (len(rows), PAIRS), device=rows.device)
    # No `einsum`: it is bfloat16 under autocast, and the clicked ad's score is not.
    negatives = (user[rows][:, None] * candidates.vectors[drawn]).sum(dim=2)
    positives = (user[rows] * ad[rows]).sum(dim=1, keepdim=True)
    losses = PAIR_LOSSES[loss]((positives - negatives) / temperature)
    # A draw of the clicked ad itself is no pair. Its loss is multiplied by 0 and not
    # dropped, so that no shape depends on the data.
    differs = candidates.ids[drawn] != ad_ids[rows, None]
    mean = (losses * differs).sum(dim=1) / differs.sum(dim=1).clamp(min=1)
    return Share(mean @ anchors.weights, anchors.weights.sum())
