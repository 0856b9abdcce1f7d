"""Losses of pairs: the clicked ad should score above another one. For comparison.

Every anchor meets `PAIRS` ads drawn at random from those of the global batch, except
places of its own ad. Scores are corrected by nothing: ads are drawn as they are shown,
so popular ones are pushed down more often.
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
    """max(0, 1 - positive + negative): Schroff et al., FaceNet, CVPR 2015.

    The temperature is the margin of the scores themselves.
    """
    return F.relu(1 - margins)


PAIR_LOSSES = {"bpr": bpr, "triplet": triplet}


def pairwise_loss(
    way: str,
    user: Tensor,
    ad: Tensor,
    ad_ids: Tensor,
    anchors: Anchors,
    temperature: float | Tensor,
) -> Share:
    """This rank's share of the mean, over the anchors, of the mean over their pairs.

    Args:
        way: `bpr` or `triplet`.
        user: (B, D).
        ad: (N, D); row i < B is the ad shown to row i of `user`.
        ad_ids: (N,) int64.
        anchors: the clicked rows.
    """
    columns, _ = gather_ads(ad, ad_ids)
    at = anchors.rows
    drawn = torch.randint(len(columns.ids), (len(at), PAIRS), device=at.device)
    # No `einsum`: it is bfloat16 under autocast, and the clicked ad's score is not.
    others = (user[at][:, None] * columns.vectors[drawn]).sum(dim=2)
    own = (user[at] * ad[at]).sum(dim=1, keepdim=True)
    losses = PAIR_LOSSES[way]((own - others) / temperature)
    differs = columns.ids[drawn] != ad_ids[at, None]
    mean = (losses * differs).sum(dim=1) / differs.sum(dim=1).clamp(min=1)
    return Share(mean @ anchors.weights, anchors.weights.sum())
