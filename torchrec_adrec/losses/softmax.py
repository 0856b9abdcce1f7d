"""Softmax over the ads of the global batch, corrected for how often each is drawn.

For an anchor row i with its ad i: -log softmax_j(u_i . a_j / temperature - log_q_j) at
j = i, where j runs over the ads of all ranks, except other places of the same ad
(accidental hits) and ads of the user's history. Ads reach the batch in proportion to
their impressions, so log_q (log of the expected share) is subtracted.

Sources: Yi et al., Sampling-bias-corrected neural modeling, RecSys 2019; with uniform
negatives beside those of the batch, Yang et al., Mixed negative sampling, WWW 2020.
"""

from torch import Tensor

from torchrec_adrec.losses.chunked import chunked_cross_entropy
from torchrec_adrec.losses.gather import gather_ads
from torchrec_adrec.losses.history import History, known_positives
from torchrec_adrec.losses.mean import global_scale


def in_batch_softmax(
    user: Tensor,
    ad: Tensor,
    ad_ids: Tensor,
    log_q: Tensor,
    anchors: Tensor,
    temperature: float | Tensor,
    history: History | None = None,
) -> Tensor:
    """See above. Only the rows of anchors are computed.

    Args:
        user: (B, D).
        ad: (N, D), N >= B; row i < B is the ad shown to row i of `user`, the rest are
            negatives only.
        ad_ids: (N,) int64.
        log_q: (N,).
        anchors: (B,), 1 for rows that count (clicked), else 0.
        temperature: divides the scores; a scalar tensor if it is learned.
        history: what the users had clicked before.
    """
    columns, first = gather_ads(ad, ad_ids, log_q)
    scale = global_scale(anchors)
    at = anchors.nonzero().squeeze(1)
    masked = known_positives(history, at, first) if history is not None else None
    rows = user[at] / temperature
    loss = chunked_cross_entropy(rows, columns, at + first, anchors[at], masked)
    return loss * scale
