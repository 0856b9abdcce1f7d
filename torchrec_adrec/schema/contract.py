"""What all parts of the contract share: frozen models, and names of our own columns."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

AD_ID = "ad_id"
LOG_Q = "log_q"
SCORE = "score"
RANK_SCORE = "rank_score"
USER_KEY = "user_key"  # of a row's user, where the data names one
NO_USER = -1  # the key of a row whose user is missing
PROPENSITY = "propensity"  # of the shown ad, where the log tells it
# Columns of our own files and answers.
RESERVED = (
    *(AD_ID, USER_KEY, PROPENSITY, LOG_Q, SCORE, RANK_SCORE),
    *("impressions", "clicks"),
)
# Feature names are file names and parts of column names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Frozen(BaseModel):
    """A part of the contract: it never changes, and nothing unknown is read into it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
