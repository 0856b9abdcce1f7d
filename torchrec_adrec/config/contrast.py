"""Settings of the loss that sets clicked ads apart from others."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from torchrec_adrec.config.base import Count, Fraction, Settings
from torchrec_adrec.config.mined import MinedNegatives


def _correction(value: Any) -> Any:
    """Name the corrections that once were true and false."""
    names = {True: "without_positive", False: "none"}
    return names[value] if isinstance(value, bool) else value


Correction = Annotated[
    Literal["none", "standard", "without_positive"], BeforeValidator(_correction)
]


class ContrastSettings(Settings):
    """The contrast of the towers; its settings stand in `retrieval`."""

    contrast: Literal["softmax", "bpr", "triplet"] = "softmax"
    """The loss that sets clicked ads apart from others: the sampled softmax, or losses
    of pairs (for comparison)."""
    temperature: Annotated[float, Field(gt=0)] = 0.02
    """Divides the score inside the contrast. On Criteo 0.2 gave recall@100 0.36, and
    0.02 gave 0.77 with the better AUC (validation)."""
    learn_temperature: bool = False
    """Start at `temperature` and learn it."""
    log_q: Correction = "without_positive"
    """Correct the softmax for how often each ad is drawn; with none popular ads are
    pushed down. standard: of all ads, the clicked one too (Yi et al., RecSys 2019).
    without_positive: of all others, since the clicked one is not drawn (Khrylchenko et
    al., RecSys 2025). true and false are without_positive and none."""
    in_batch_negatives: bool = True
    """Whether the ads of a batch's other rows are negatives. false leaves those of
    `uniform_negatives` alone."""
    uniform_negatives: Annotated[int, Field(ge=0)] = 0
    """Number of ads that each step (over all ranks) draws uniformly from those that
    training showed, in addition to the batch's; log_q is then that of the mixture."""
    hardest: Count | None = None
    """Keep so many negatives of an anchor, those that the model scores highest, after
    the correction by log_q. Losses of pairs draw theirs from these. Default: all."""
    hardest_rise: Fraction = 0
    """A curriculum: the share of all steps in which the number of negatives falls from
    all to `hardest`, by the same factor in every step. 0: the hardest alone from the
    first step on."""
    mined: MinedNegatives = MinedNegatives()
    """Negatives of each click from the list of an earlier run of the towers, in the
    softmax alone."""

    @model_validator(mode="after")
    def _mined_negatives_are_of_the_softmax(self) -> Self:
        if self.mined.per_click and self.contrast != "softmax":
            raise ValueError(
                f"mined.per_click is {self.mined.per_click} with contrast"
                f" {self.contrast}: losses of pairs draw from the batch alone; set"
                " contrast to softmax"
            )
        return self

    @model_validator(mode="after")
    def _there_are_negatives(self) -> Self:
        if not self.in_batch_negatives and not self.uniform_negatives:
            raise ValueError(
                "in_batch_negatives is false and uniform_negatives is 0: there is no"
                " negative; set uniform_negatives above 0"
            )
        return self

    @model_validator(mode="after")
    def _a_curriculum_ends_somewhere(self) -> Self:
        if self.hardest_rise and self.hardest is None:
            raise ValueError("hardest_rise leads to `hardest`: set that too")
        return self
