"""Why an ad is among the best of a user, or at which stage it was lost."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.data.request import RawUser
from torchrec_adrec.index.eligible import EligibleAds
from torchrec_adrec.schema import AD_ID
from torchrec_adrec.serve.contributions import contributions
from torchrec_adrec.serve.parts import Parts
from torchrec_adrec.serve.rank_by import RankBy

# Where an ad ends, in the order of the stages; only the last one is shown.
Stage = Literal[
    "not in the catalog",
    "not eligible",
    "not retrieved",
    "missed by the index",
    "ranked too low",
    "shown",
]


@dataclass(frozen=True)
class Retrieval:
    """What the first stage made of an ad.

    Attributes:
        place: of all ads that may be shown, by exact search over the vectors that the
            index stores, from 1.
        ads: how many these are.
        candidates: how many of them are ranked.
        score: the towers' inner product.
        cut: that of the last candidate by exact search.
        is_found: whether the index returned the ad.
    """

    place: int
    ads: int
    candidates: int
    score: float
    cut: float
    is_found: bool


@dataclass(frozen=True)
class Ranking:
    """What the second stage makes of an ad, or would if it were a candidate.

    Attributes:
        place: among the candidates, from 1.
        top: how many are shown.
        rank_score: the value of `recommend.rank_by`.
        cut: that of the last ad that is shown.
        predictions: of each label.
    """

    place: int
    top: int
    rank_score: float
    cut: float
    predictions: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """The way of one ad through the stages of a request.

    Attributes:
        ad_id: of the ad.
        stage: where it was lost, or `shown`.
        retrieval, ranking: None for an ad that cannot be shown.
        columns: what each raw column adds to the served scores (`contributions`); None
            for an ad that is not in the catalog.
    """

    ad_id: int
    stage: Stage
    retrieval: Retrieval | None = None
    ranking: Ranking | None = None
    columns: pl.DataFrame | None = None

    @property
    def lines(self) -> list[str]:
        """The way in words, a stage a line."""
        lines = [f"ad {self.ad_id}: {self.stage}"]
        if self.retrieval is not None:
            r = self.retrieval
            lines.append(
                f"retrieval: place {r.place:,} of {r.ads:,} by exact search, score"
                f" {r.score:.6g}; the {r.candidates:,} candidates end at {r.cut:.6g}"
            )
            returns = "returns it" if r.is_found else "does not return it"
            lines.append(f"index: {returns}")
        if self.ranking is not None:
            k = self.ranking
            would = (
                "place" if self.retrieval and self.retrieval.is_found else "would be"
            )
            lines.append(
                f"ranker: {would} {k.place:,}, rank score {k.rank_score:.6g}; the"
                f" {k.top} that are shown end at {k.cut:.6g}"
            )
        return lines


def explain(
    parts: Parts,
    rank_by: RankBy,
    user: RawUser,
    ad_id: int,
    top: int,
    eligible: EligibleAds | None = None,
) -> Explanation:
    """Follow an ad through the stages of a request.

    Args:
        parts: loaded.
        rank_by: the order of the ads.
        user: raw columns.
        ad_id: of the ad.
        top: number of ads that are shown.
        eligible: the ads that may be shown; None: all.

    Raises:
        DataError: a column or a value is not one of a user.
        PredictionError: a number is not finite.
    """
    if not parts.scorer.listed[AD_ID].is_in([ad_id]).any():
        return Explanation(ad_id, "not in the catalog")
    ad = np.array([ad_id])
    index, vector = parts.retriever.index, parts.user_vector(user)
    index.eligible(ad)  # refuses an ad that the index does not hold
    score = index.stored(ad) @ vector[0]
    candidates, scores = parts.retrieve(user, eligible)
    others = candidates != ad_id
    # Scored together with the candidates, as a request would do it.
    ids = np.append(candidates[others], ad)
    predictions = parts.predict(user, ids, np.append(scores[others], score))
    rank_scores = rank_by.score(predictions, parts.scorer.rows(ids))
    served = {label: float(column[-1]) for label, column in predictions.items()}
    columns = contributions(parts, user, int(parts.scorer.rows(ad)[0]), served)
    if eligible is not None and ad_id not in eligible.ids:
        return Explanation(ad_id, "not eligible", columns=columns)
    exact_ids, exact = index.compare_all(vector, index.count, eligible)
    retrieval = Retrieval(
        place=int(np.flatnonzero(exact_ids[0] == ad_id)[0]) + 1,
        ads=exact_ids.size,
        candidates=len(candidates),
        score=float(score[0]),
        cut=float(exact[0, len(candidates) - 1]),
        is_found=not others.all(),
    )
    ranking = _ranking(ids, rank_scores, retrieval.is_found, top, served)
    stage = _stage(retrieval, ranking)
    return Explanation(ad_id, stage, retrieval, ranking, columns)


def _ranking(
    ids: Int64s,
    rank_scores: Float64s,
    is_candidate: bool,
    top: int,
    predictions: dict[str, float],
) -> Ranking:
    """Find the place of the last ad among the others.

    Args:
        ids, rank_scores: (n,) the other candidates, then the ad.
        is_candidate: whether the ad is one itself.
        top: number of ads that are shown.
        predictions: of the ad.
    """
    order = np.lexsort((ids, -rank_scores))  # equal ones by id, as a request does it
    place = int(np.flatnonzero(order == len(ids) - 1)[0]) + 1
    shown = order if is_candidate else order[order != len(ids) - 1]
    cut = float(rank_scores[shown[top - 1]])
    return Ranking(place, top, float(rank_scores[-1]), cut, predictions)


def _stage(retrieval: Retrieval, ranking: Ranking) -> Stage:
    if retrieval.is_found:
        return "shown" if ranking.place <= ranking.top else "ranked too low"
    is_near = retrieval.place <= retrieval.candidates
    return "missed by the index" if is_near else "not retrieved"
