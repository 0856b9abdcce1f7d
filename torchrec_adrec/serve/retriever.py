"""From one user to the nearest ads of the index."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.batch import TowerInput
from torchrec_adrec.errors import PredictionError
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.updated import UpdatedIndex


class Retriever:
    """The user tower in front of the index.

    Attributes:
        tower: encodes users, (B, D).
        index: of the ads' vectors.
    """

    def __init__(
        self,
        tower: Callable[[TowerInput], Tensor],
        index: ShardedIndex | UpdatedIndex,
    ) -> None:
        self.tower, self.index = tower, index

    def retrieve(
        self, user: TowerInput, k: int, eligible: EligibleAds | None = None
    ) -> tuple[Int64s, Float32s]:
        """Find ids and scores of the `k` best ads for one user, best first, both (k,).

        Args:
            user: of one row.
            k: number of ads; fewer where fewer are eligible.
            eligible: the ads that may be returned; None: all.

        Raises:
            PredictionError: the user's vector is not finite.
        """
        ids, scores = self.retrieve_many(user, k, eligible)
        return ids[0], scores[0]

    def retrieve_many(
        self, users: TowerInput, k: int, eligible: EligibleAds | None = None
    ) -> tuple[Int64s, Float32s]:
        """Find ids and scores for each of some users, best first, both (B, k).

        Args:
            users: B rows.
            k, eligible: as of `retrieve`.

        Raises:
            PredictionError: a vector is not finite.
        """
        ids, scores = self.index.search(self.vectors(users), k, eligible)
        _check_finite(scores, "score of an ad")
        return ids, scores

    @torch.inference_mode()
    def vectors(self, users: TowerInput) -> Float32s:
        """Encode users, (B, D).

        Raises:
            PredictionError: a vector is not finite.
        """
        vectors = np.asarray(self.tower(users).numpy())
        _check_finite(vectors, "vector of the user")
        return vectors


def _check_finite(rows: Float32s, noun: str) -> None:
    wrong = ~np.isfinite(rows).all(axis=1)
    if wrong.any():
        raise PredictionError(
            f"the towers' {noun} is not finite: `adrec checkpoint inspect`"
            " shows whether their weights are; train again",
            row=int(np.argmax(wrong)),
        )
