"""What the page shows of one request: ten ads, other lists, and why an ad is there."""

from dataclasses import dataclass

import polars as pl

from torchrec_adrec.data.request import RawUser
from torchrec_adrec.schema import AD_ID, SCORE
from torchrec_adrec.serve.contributions import ADDS
from torchrec_adrec.serve.explain import Explanation
from torchrec_adrec.serve.parts import Parts
from torchrec_adrec.serve.recommender import Recommender

IMPRESSIONS = "impressions in training"
LISTED = "among the ten"
SHOWN_REASONS = 8  # columns of an explanation, those that add or take most


@dataclass(frozen=True)
class Answer:
    """The answer to one request, and what simpler systems would have shown.

    Ids are text: a browser rounds integers of 63 bits.

    Attributes:
        ads: the best, in order: `place`, `ad_id`, the prediction of each label, the
            towers' score, and the ad's raw columns.
        popular: the most shown ads of training, for everybody the same.
        retrieved: the ads with the best score of the towers, before any ranking.
        candidates: number of ads that the ranker scored.
        milliseconds: per stage, and `total`.
    """

    ads: pl.DataFrame
    popular: pl.DataFrame
    retrieved: pl.DataFrame
    candidates: int
    milliseconds: dict[str, float]

    @property
    def ids(self) -> list[int]:
        """The ids of the best ads, in order."""
        return [int(ad) for ad in self.ads[AD_ID]]


def answer(recommender: Recommender, user: RawUser) -> Answer:
    """Ask for a user's ads, and make the lists that stand beside them.

    Args:
        recommender: of the run.
        user: raw columns.

    Raises:
        DataError, PredictionError: as of `Recommender.recommend`.
    """
    best = recommender.recommend(user)
    ids, top = best.ads[AD_ID], len(best.ads)
    popular = most_shown(recommender.parts, top)
    retrieved = nearest(recommender.parts, user, top)
    return Answer(
        _placed(best.ads),
        _placed(popular.with_columns(pl.col(AD_ID).is_in(ids.implode()).alias(LISTED))),
        _placed(
            retrieved.with_columns(pl.col(AD_ID).is_in(ids.implode()).alias(LISTED))
        ),
        best.candidates,
        best.milliseconds,
    )


def most_shown(parts: Parts, top: int) -> pl.DataFrame:
    """Return the ads that training showed most, equal ones by id.

    An ad that was added since has no impressions; one that was removed is left out.
    """
    counts = parts.catalog.select(AD_ID, pl.col("impressions").alias(IMPRESSIONS))
    listed = parts.scorer.listed.join(counts, on=AD_ID, how="left")
    ads = listed.with_columns(pl.col(IMPRESSIONS).fill_null(0))
    order = ads.sort(IMPRESSIONS, AD_ID, descending=[True, False])
    return order.head(top).select(AD_ID, IMPRESSIONS, pl.exclude(AD_ID, IMPRESSIONS))


def nearest(parts: Parts, user: RawUser, top: int) -> pl.DataFrame:
    """Return the ads of the best inner products, as the index finds them."""
    ids, scores = parts.retrieve(user)
    shown = parts.scorer.show(ids[:top])
    return shown.insert_column(1, pl.Series(SCORE, scores[:top]))


def _placed(ads: pl.DataFrame) -> pl.DataFrame:
    """Number the ads from 1, and write their ids as text."""
    return ads.with_columns(pl.col(AD_ID).cast(pl.String)).with_row_index("place", 1)


def reasons(explanation: Explanation, label: str) -> pl.DataFrame:
    """Return the columns that add most to a prediction or take most from it.

    Args:
        explanation: of an ad of the catalog.
        label: whose prediction.

    Returns:
        `side`, `column`, `value` and `adds`: how much less the prediction is if the
        column is missing. These numbers do not add up to the prediction.
    """
    assert explanation.columns is not None  # only of an ad outside the catalog
    columns = explanation.columns.select(
        "side",
        "column",
        pl.col("given").alias("value"),
        pl.col(f"{ADDS}{label}").alias("adds"),
    )
    return columns.sort(pl.col("adds").abs(), descending=True).head(SHOWN_REASONS)
