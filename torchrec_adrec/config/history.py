"""Settings of the encoder of a user's history."""

from typing import Annotated, Literal

from pydantic import Field

from torchrec_adrec.config.base import Count, Settings

Dropout = Annotated[float, Field(ge=0, lt=1)]


class HistoryConfig(Settings):
    """How the towers read what a user did (docs/training.md)."""

    encoder: Literal["mean", "attention", "gru"] = "mean"
    """mean: the history has a table of its own, which averages its vectors. attention
    and gru read it in its order, from the very table that gives the ads their item's
    vector, so they need a history that shares its ids with a feature of the ads."""
    layers: Count = 1
    """Blocks of attention, or layers of the GRU."""
    heads: Annotated[int, Field(ge=1, le=4)] = 1
    """Heads of the attention; they divide `retrieval.embedding_dim`."""
    dropout: Dropout = 0.2
    """Share of the items' numbers, of attention weights and of activations that a
    training step leaves out."""
