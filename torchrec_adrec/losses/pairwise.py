"""Losses of pairs: the clicked ad should score above another one. For comparison.

Every anchor meets `PAIRS` ads drawn at random from those of the global batch, or from
the hardest of them; draws of the anchor's own ad and of its user's history do not
count. Scores are not corrected: ads of a batch are drawn as often as they are shown, so
popular ones are pushed down more often. Uniform negatives alone are BPR as it was
published.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.losses.anchors import Anchors
from torchrec_adrec.losses.excluded import ExcludedCandidates
from torchrec_adrec.losses.gather import gather_ads
from torchrec_adrec.losses.history import History, excluded
from torchrec_adrec.losses.mean import Share
from torchrec_adrec.losses.negatives import ALL, Negatives

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
    history: History | None = None,
    negatives: Negatives = ALL,
) -> Share:
    """This rank's share of the mean, over the anchors, of the mean over their pairs.

    Args:
        loss: a name in `PAIR_LOSSES`.
        user: (B, D).
        ad: (N, D); row i < B is the ad shown to row i of `user`.
        ad_ids: (N,) int64.
        anchors: the clicked rows.
        temperature: divides the scores.
        history: what the users clicked before.
        negatives: which ads the pairs are made with.
    """
    candidates, _ = gather_ads(ad, ad_ids)
    rows = anchors.rows
    known = None if history is None else excluded(history, rows)
    columns = negatives.columns(len(user), len(ad), ad.device)
    allowed = _Allowed(columns, candidates.ids, ad_ids[rows], known)
    if negatives.hardest is None:
        drawn = allowed.draw()
    else:
        scores = user[rows].detach() @ candidates.vectors.detach().T
        drawn = allowed.draw_hardest(scores, negatives.hardest)
    # No `einsum`: it is bfloat16 under autocast, and the clicked ad's score is not.
    others = (user[rows][:, None] * candidates.vectors[drawn]).sum(dim=2)
    positives = (user[rows] * ad[rows]).sum(dim=1, keepdim=True)
    losses = PAIR_LOSSES[loss]((positives - others) / temperature)
    # A draw of an ad that is no negative is no pair. Its loss is multiplied by 0 and
    # not dropped, so that no shape depends on the data.
    is_pair = allowed.are_pairs(drawn)
    mean = (losses * is_pair).sum(dim=1) / is_pair.sum(dim=1).clamp(min=1)
    return Share(mean @ anchors.weights, anchors.weights.sum())


class _Allowed(NamedTuple):
    """The candidates that may be an anchor's negatives.

    Attributes:
        columns: (C,) the candidates that are negatives of any anchor.
        ids: (N,) of all candidates.
        clicked: (A,) the ids of the anchors' clicked ads.
        known: what the anchors' users clicked before.
    """

    columns: Tensor
    ids: Tensor
    clicked: Tensor
    known: ExcludedCandidates | None

    def draw(self) -> Tensor:
        """Draw `PAIRS` candidates for each anchor, (A, PAIRS)."""
        return self.columns[self._places(len(self.columns))]

    def draw_hardest(self, scores: Tensor, count: int) -> Tensor:
        """Draw up to `PAIRS` of the `count` candidates with the largest scores (A, N).

        Returns:
            (A, min(count, PAIRS)).
        """
        refused = self.ids == self.clicked[:, None]
        if self.known is not None:
            refused |= self.known.mask(slice(0, len(scores)))
        scores = scores.masked_fill(refused, -torch.inf)[:, self.columns]
        count = min(count, len(self.columns))
        hardest = self.columns[scores.topk(count, dim=1).indices]
        if count <= PAIRS:
            return hardest
        return hardest.gather(1, self._places(count))

    def are_pairs(self, drawn: Tensor) -> Tensor:
        """Whether candidates (A, P) are another ad than the anchor's and none that its
        user clicked before, (A, P) bool.
        """
        differs = self.ids[drawn] != self.clicked[:, None]
        return differs if self.known is None else differs & ~self.known.holds(drawn)

    def _places(self, count: int) -> Tensor:
        shape = (len(self.clicked), PAIRS)
        return torch.randint(count, shape, device=self.clicked.device)
