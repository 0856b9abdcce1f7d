"""Settings of the negatives that an earlier run of the towers retrieves."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from torchrec_adrec.config.base import Count, Settings


class MinedNegatives(Settings):
    """Ads that earlier towers retrieve for each training click (docs/training.md)."""

    per_click: Annotated[int, Field(ge=0)] = 0
    """Ads that each step draws for each of its clicks, from the list of that click.
    They are negatives of this click alone, in addition to the batch's. 0: none."""
    ranks: tuple[Count, Count] = (20, 200)
    """The first and the last place of the list that ads are drawn from; 1 is the best
    ad. Neither the ads of the user's training clicks nor those of his history have a
    place. The very first are often clicks that are still to come (Huang et al., KDD
    2020, drew from 101 to 500). A list takes 4 bytes a place and click on the disk."""
    checkpoint: str = ""
    """The checkpoint of the towers that search, trained on the same rows."""

    @model_validator(mode="after")
    def _a_list_has_places(self) -> Self:
        first, last = self.ranks
        if first > last:
            raise ValueError(
                f"ranks [{first}, {last}] hold no place: set the better one first"
            )
        return self

    @model_validator(mode="after")
    def _somebody_searches(self) -> Self:
        if self.per_click and not self.checkpoint:
            raise ValueError(
                f"per_click is {self.per_click} and no checkpoint is named: train"
                " towers first (`adrec train retrieval`), and name theirs"
            )
        return self
