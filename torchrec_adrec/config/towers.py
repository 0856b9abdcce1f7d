"""Settings of what the towers are made of, and of what they read."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from torchrec_adrec.config.base import Count, Settings
from torchrec_adrec.config.history import Dropout, HistoryConfig


class TowerSettings(Settings):
    """The towers' sizes and what they read; its settings stand in `retrieval`."""

    embedding_dim: Count = 16
    """Columns of every embedding table."""
    tables_precision: Literal["float32", "float16"] = "float32"
    """Numbers of the towers' tables. float16 takes half of their memory, in training,
    in checkpoints and where towers serve. Their optimizer's state, the vectors that are
    looked up and all gradients stay float32; an update below a thousandth of a number
    is lost on a CPU, and on a GPU rounded up or down by chance. Towers of 2,038 MiB
    took 1,089 (`benchmarks/memory.py`)."""
    hidden: tuple[Count, ...] = (256,)
    """Hidden layers of each tower."""
    output_dim: Count = 64
    """Width of the vectors of users and ads, which are exported and searched. An ad's
    bytes in the index grow with it."""
    dropout: Dropout = 0.1
    """Share of the activations that a training step leaves out."""
    history: HistoryConfig = HistoryConfig()
    similarity: Literal["cosine", "dot", "additive"] = "cosine"
    """How a user vector and an ad vector become a score; the index metric follows from
    it. additive: the user's number plus the ad's, so that all users have the same order
    of ads (a baseline)."""
    projection: bool = True
    """Whether a linear layer gives the vectors their width. false: a vector is the sum
    of those of its side's ids, which needs `hidden: []`, `output_dim` equal to
    `embedding_dim`, `fusion: concat`, and neither numbers nor vectors of the data. With
    one id a side (`features`) that is matrix factorisation; a history that an encoder
    reads is one vector of the sum."""
    score_bias: bool = False
    """The last number of a user's vector is 1, so that the last one of an ad's vector
    is a bias of the ad, inside the score. It needs `similarity: dot`."""
    features: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The features that the towers read, by name; the biases of `click_bias` read all,
    and a history of ads keeps them from being negatives either way. Default: all."""
    click_bias: bool = True
    """Add a number of the user and one of the ad to the click's logit, from narrow
    tables that serve nothing else. On Criteo it raised the towers' AUC from 0.741 to
    0.759 and recall@100 from 0.79 to 0.83 (test, one seed; chosen on the validation
    split)."""
    fusion: Literal["concat", "gated"] = "concat"
    """How a tower joins its fields. concat: side by side, before the hidden layers.
    gated: each field's vector times a learned gate, summed; a number is a field with a
    vector of its own. The gates of each side stand in the report."""
    statistics: bool = True
    """Whether the vectors read the statistics of values; the biases always do. On
    Criteo they cost the towers a recall@10 of 0.65 to 0.53 (one seed), as they tell who
    clicks and not what belongs together."""

    @model_validator(mode="after")
    def _without_projection_widths_are_equal(self) -> Self:
        if not self.projection and (
            self.hidden or self.output_dim != self.embedding_dim
        ):
            raise ValueError(
                f"projection is false with hidden {self.hidden}, embedding_dim"
                f" {self.embedding_dim} and output_dim {self.output_dim}: no layer may"
                " follow the tables; set hidden to [] and output_dim to embedding_dim"
            )
        if not self.projection and self.similarity == "additive":
            raise ValueError("similarity additive needs projection: one number a side")
        if not self.projection and self.fusion == "gated":
            raise ValueError(
                "fusion gated needs projection: without it the vectors of a side are"
                " summed as they are"
            )
        return self

    @model_validator(mode="after")
    def _a_bias_is_added_to_an_inner_product(self) -> Self:
        if self.score_bias and self.similarity != "dot":
            raise ValueError(
                f"score_bias with similarity {self.similarity}: vectors of one length"
                " have no room for a bias; set similarity to dot"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embedding_dim % self.history.heads:
            raise ValueError(
                f"embedding_dim {self.embedding_dim} must be a multiple of"
                f" history.heads {self.history.heads}"
            )
        return self

    @property
    def vector_dim(self) -> int:
        """D, the width of the vectors that are exported and searched."""
        return 2 if self.similarity == "additive" else self.output_dim
