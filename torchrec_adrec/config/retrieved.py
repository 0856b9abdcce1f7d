"""Settings of the rows that a ranker is trained on beside those of the log."""

from typing import Annotated

from pydantic import Field

from torchrec_adrec.config.base import Count, Settings


class RetrievedNegatives(Settings):
    """Retrieved ads that nobody was shown, as rows without a click."""

    per_click: Annotated[int, Field(ge=0)] = 0
    """Rows for each training click: its user with ads that the towers retrieve. 0:
    none, the ranker reads logged rows alone."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How much the loss of such a row counts, where that of a logged row counts 1."""
    candidates: Count = 500
    """How many of a user's best ads the rows are drawn from; those that are served
    when this is `recommend.candidates`."""
