"""Settings of the optimizers of tables and of all else."""

from typing import Annotated, Literal

from pydantic import Field

from torchrec_adrec.config.base import Count, Rate, Settings

# At 0 nothing is learnt, without any error; `ranking.tables` is how tables are frozen.
LearningRate = Annotated[float, Field(gt=0)]


class OptimizerConfig(Settings):
    """Row-wise Adagrad for the tables (fused into backward), AdamW for the rest."""

    tables_lr: LearningRate = 0.02
    """Learning rate of the embedding tables."""
    dense_lr: LearningRate = 0.001
    """Learning rate of all other parameters."""
    weight_decay: Rate = 1e-5
    """Of AdamW; the tables have none."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which both learning rates rise from 0."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How both learning rates fall to 0 between the warm-up and the last step."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the dense gradient. Tables are updated inside backward, before
    the norm is known; row-wise Adagrad scales them by their own history instead."""
    accumulate: Count = 1
    """Number of steps whose dense gradients are averaged for one dense update; tables
    are updated in every step."""
