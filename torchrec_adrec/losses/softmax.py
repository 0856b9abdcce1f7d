"""Softmax over the ads of the global batch, corrected for how often each is drawn.

For an anchor row i with its ad i, T the temperature and N ads in the batch of all
ranks:

    -log( e^(u_i . a_i / T) / (e^(u_i . a_i / T) + sum_j e^(u_i . a_j / T) / n_j) )

where j runs over the other ads of the batch, except further rows of the same ad
(accidental hits) and ads of the user's history.

n_j = (N - 1) q_j is the logQ correction. An ad with the share q_j of all impressions
reaches a batch in proportion to it, so without a correction a popular ad would be a
negative far more often than a rare one and be pushed down for its popularity alone.
Among the N - 1 other ads of the batch n_j are expected to be ad j; dividing by n_j
makes the sum, in expectation, the sum over the whole catalog, each ad once. The clicked
ad was not drawn but given, so it is not corrected.

Sources: Yi et al., Sampling-bias-corrected neural modeling, RecSys 2019; Khrylchenko et
al., Correcting the LogQ correction, RecSys 2025, for the clicked ad; with uniform
negatives in addition to those of the batch, Yang et al., Mixed negative sampling, WWW
2020.
"""

import torch
from torch import Tensor

from torchrec_adrec.losses.anchors import Anchors
from torchrec_adrec.losses.chunked import chunked_cross_entropy
from torchrec_adrec.losses.device_blocks import large_block_cross_entropy
from torchrec_adrec.losses.gather import gather_ads
from torchrec_adrec.losses.history import History, excluded, known_positives
from torchrec_adrec.losses.mean import Share


def in_batch_softmax(
    user: Tensor,
    ad: Tensor,
    ad_ids: Tensor,
    log_q: Tensor | None,
    anchors: Anchors,
    temperature: float | Tensor,
    history: History | None = None,
) -> Share:
    """This rank's share of the mean of the loss above; computes the anchors' rows only.

    Args:
        user: (B, D).
        ad: (N, D), N >= B; row i < B is the ad shown to row i of `user`, the rest are
            negatives only.
        ad_ids: (N,) int64.
        log_q: (N,), log of each ad's share of all draws; None: no correction.
        anchors: the clicked rows.
        temperature: divides the scores; a scalar tensor if it is learned.
        history: what the users clicked before.
    """
    candidates, first = gather_ads(ad, ad_ids, log_q)
    large_blocks = in_large_blocks(user.device)
    # A device keeps the padding, of weight 0: its shapes must not depend on the data.
    if not large_blocks:
        anchors = anchors.trimmed()
    # Backward of `user[rows]` adds row by row: 0.41 ms for 512 of 2,048, this 0.06.
    rows = user.index_select(0, anchors.rows) / temperature
    # Ads lie in the order of ranks and rows, so an anchor's ad is known by position.
    target = anchors.rows + first
    if large_blocks:
        mask = None if history is None else excluded(history, anchors.rows)
        loss = large_block_cross_entropy(
            rows, candidates, target, anchors.weights, mask
        )
    else:
        pairs = None
        if history is not None:
            pairs = known_positives(history, anchors.rows, first)
        loss = chunked_cross_entropy(rows, candidates, target, anchors.weights, pairs)
    return Share(loss, anchors.weights.sum())


def in_large_blocks(device: torch.device) -> bool:
    """Whether a device computes the softmax in large blocks; the numbers are equal."""
    return device.type != "cpu"
