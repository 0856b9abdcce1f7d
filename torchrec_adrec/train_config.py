"""Settings of training: models, losses, optimizers, the loop, and sharding."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from torchrec_adrec.settings import Count, Fraction, Rate, Settings

Dropout = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Settings):
    """Row-wise Adagrad for the tables (fused into backward), AdamW for the rest."""

    tables_lr: Rate = 0.02
    dense_lr: Rate = 0.001
    weight_decay: Rate = 1e-5


class TowersConfig(Settings):
    """Two towers and the loss they are trained with."""

    embedding_dim: Count = 16
    hidden: tuple[Count, ...] = (256,)
    output_dim: Count = 64
    dropout: Dropout = 0.1
    similarity: Literal["cosine", "dot"] = "cosine"
    """How a user and an ad vector become a score; the index metric follows from it."""
    alpha: Fraction = 0.9
    """Weight of the click's cross-entropy; the rest is the in-batch softmax. On Criteo
    .7 gave AUC .748 and recall@100 .81, .98 gave .769 and .53 (validation)."""
    temperature: Annotated[float, Field(gt=0)] = 0.02
    """Divides the score inside the softmax. On Criteo .2 gave recall@100 .36, .02 gave
    .77, and the better AUC (validation)."""
    optimizer: OptimizerConfig = OptimizerConfig()
    start: str = ""
    """Checkpoint of another run whose weights training begins with (`--from`)."""
    allow_new_tables: bool = False
    """Parameters that do not fit `start` stay as initialised, and are listed."""


class RankerConfig(Settings):
    """The token transformer that orders the candidates."""

    layers: Count = 1
    heads: Count = 2
    model_dim: Count = 16
    feedforward_dim: Count = 32
    head_dim: Count = 64
    dropout: Dropout = 0.1
    tables: Literal["warm_start", "frozen", "scratch"] = "warm_start"
    """Where the tables come from: the retrieval checkpoint, or fresh."""
    optimizer: OptimizerConfig = OptimizerConfig(tables_lr=0.05, dense_lr=0.002)
    """A table that is warm-started and then hardly moves ranks worse than a fresh one:
    the learning rate of the tables stays high."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.model_dim % self.heads:
            raise ValueError(
                f"model_dim {self.model_dim} must be a multiple of heads {self.heads}"
            )
        return self


class TrainConfig(Settings):
    """The loop, the same for towers and ranker."""

    batch_size: Count = 1024
    """Rows of one optimizer step over *all* ranks: a run means the same on any."""
    eval_batch_size: Count = 4096
    epochs: Count = 1
    checkpoint_every: Count = 200
    """Steps between two checkpoints."""
    keep_checkpoints: Count = 2
    log_every: Count = 20
    """Steps between two points of the loss curve."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Times that `adrec run` starts all ranks again after one died."""
    hang_seconds: Annotated[float, Field(gt=0)] = 300
    """Without a step after which a rank says where all ranks stand, and ends."""
    ledger: bool = False
    """Write down which rows every step took: `adrec checkpoint ledger`
    compares them with the rows that there are."""
    shuffle_window: Count = 1_000_000
    """Rows that are shuffled together, within row groups drawn in random order."""


class ShardingConfig(Settings):
    """What the planner may choose from. `data_parallel` is left out on purpose: with an
    optimizer inside backward such tables never train, and nothing says so.
    """

    types: tuple[Literal["table_wise", "row_wise", "table_row_wise"], ...] = (
        "table_wise",
        "row_wise",
    )
