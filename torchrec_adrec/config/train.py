"""Settings of training: models, losses, optimizers, and the loop."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from torchrec_adrec.config.base import Count, Fraction, Settings
from torchrec_adrec.config.contrast import ContrastSettings
from torchrec_adrec.config.history import Dropout
from torchrec_adrec.config.objectives import (
    Conditional,
    LabelWeight,
    Share,
    parents_first,
)
from torchrec_adrec.config.optimizer import OptimizerConfig
from torchrec_adrec.config.retrieved import RetrievedNegatives
from torchrec_adrec.config.teacher import TeacherConfig
from torchrec_adrec.config.towers import TowerSettings


class RetrievalConfig(TowerSettings, ContrastSettings):
    """The two towers and the loss that they are trained with."""

    alpha: Fraction = 0.9
    """Weight of the click's cross-entropy; the rest is the contrast. On Criteo 0.7 gave
    AUC 0.748 and recall@100 0.81, 0.98 gave 0.769 and 0.53 (validation)."""
    judge: Literal["log_loss", "ndcg@10", "recall@10"] = "log_loss"
    """The validation figure by which `train.evaluate_every` chooses the best checkpoint
    and `train.patience` stops: the click's log loss, or where the exact search of the
    whole catalog puts the ads of validation clicks. Ads that a user is known to have
    clicked are no candidates, and clicks on them are not asked for. With `alpha` 0 no
    log loss is learnt."""
    judge_queries: Count = 5_000
    """Validation clicks that the search is made for, drawn with `seed` where there are
    more."""
    optimizer: OptimizerConfig = OptimizerConfig()
    init_from: str = ""
    """Checkpoint of another run, with whose weights training begins (`--from`)."""
    allow_new_tables: bool = False
    """List parameters that do not fit `init_from`, and leave them as initialised."""
    start_from: str | None = None
    """Folder of vectors (`adrec lightgcn`) with which the tables of the ads' and users'
    ids begin; they must be as wide as `embedding_dim`. Rows without a vector start by
    chance."""
    teacher: TeacherConfig | None = None
    """Vectors that those of the towers are drawn towards (docs/training.md)."""

    @model_validator(mode="after")
    def _tables_start_once(self) -> Self:
        if self.init_from and self.start_from:
            raise ValueError(
                f"tables start from {self.init_from} (init_from) or from"
                f" {self.start_from} (start_from), not from both: leave one out"
            )
        return self

    @model_validator(mode="after")
    def _a_teacher_is_compared_number_by_number(self) -> Self:
        if self.teacher and (self.similarity == "additive" or self.score_bias):
            raise ValueError(
                "teacher: with similarity additive, or score_bias, some numbers of a"
                " vector are constants, which a teacher's are not; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _mined_negatives_are_contrasted(self) -> Self:
        if self.mined.per_click and self.alpha == 1:
            raise ValueError(
                f"mined.per_click is {self.mined.per_click} and alpha 1: there is no"
                " contrast that could read them; set alpha below 1"
            )
        return self


CalibrationKind = Literal["none", "temperature", "platt", "isotonic"]


class RankingConfig(Settings):
    """The model that orders the candidates."""

    model: Literal[
        "transformer", "lr", "dnn", "deepfm", "dcnv2", "dlrm", "finalmlp"
    ] = "transformer"
    """lr: logistic regression on all ids and numbers, a baseline. It has no sizes, and
    tables of its own, which always start at 0."""
    layers: Count = 1
    """Layers of the transformer."""
    heads: Count = 2
    """Attention heads of the transformer, and heads of finalmlp's product. They divide
    `model_dim`, or the last of `hidden`."""
    model_dim: Count = 16
    """Width of the transformer's tokens."""
    feedforward_dim: Count = 32
    """Width of the hidden layer inside a layer of the transformer."""
    head_dim: Count = 64
    """Width of the hidden layer between the transformer and the labels' outputs."""
    ad_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of an ad in the transformer, each of them mixed of all its columns. 0: one
    per raw column. What a request costs grows with them."""
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 128)
    """Hidden layers of dnn, deepfm, dcnv2, dlrm and finalmlp."""
    experts: Count = 1
    """Hidden layers of `head_dim` that the labels share: 1 is a shared bottom, more are
    mixed by a gate for each label (MMoE). On KuaiRand 4 of them gained nothing over one
    (click 0.7292 against 0.7299 AUC, validation, one seed)."""
    history: Literal["mean", "tokens"] = "mean"
    """tokens: the transformer also has a token for each item of the user's history,
    to which ads attend; the items have the vectors of the ads' own table. Needs a
    history that shares its ids with a feature of the ads."""
    cross_layers: Annotated[int, Field(ge=0)] = 2
    """Cross layers of dcnv2, and of the branch beside the transformer's tokens; 0:
    none. Beside the transformer they are worth 0.005 of AUC on Criteo with statistics
    and 0.008 on KuaiRand (validation, one epoch, one seed)."""
    cross_rank: Count = 32
    """Rank of their matrices."""
    dropout: Dropout = 0.1
    """Share of the activations that a training step leaves out."""
    field_dropout: Dropout = 0
    """Share of the looked-up vectors that a training row does not see, each as a whole;
    the others are scaled up to make up for it."""
    seeds: Count = 1
    """Members of an ensemble, of which each is a model of its own: tables get so many
    times their columns, and the score is the mean of the members' logits. They train,
    and are saved, looked up and served as one. Needs tables that start fresh."""
    embedding_dim: Count | None = None
    """Columns of the ranker's tables where they start fresh. Default: those of the
    towers' tables, `retrieval.embedding_dim`."""
    table_init: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of the vectors of a table that starts fresh. Default: uniform
    within sqrt(1 / ids), so that a table of few ids starts with the largest."""
    tables: Literal["warm_start", "frozen", "scratch"] = "warm_start"
    """The source of the tables: the retrieval checkpoint, or new random values."""
    label_weights: dict[str, LabelWeight] = Field(default_factory=dict)
    """Weight of each label's loss, by the label's name. Default: 1.0 of the click, 0.5
    of every other binary label, 0.3 of every value."""
    conditional: dict[str, Conditional] = Field(default_factory=dict)
    """Labels that can only be above 0 where another one is 1, as
    `{value: {given: click}}`: every prediction of them, in `recommend.rank_by` too, is
    then the one over all impressions."""
    negative_rate: Share = 1
    """Share of the rows without a click that training reads. The click's logit is
    corrected by its logarithm, and other labels weigh these rows by its inverse, so
    that predictions stay those of all rows."""
    retrieved_negatives: RetrievedNegatives = RetrievedNegatives()
    """Ads that the towers retrieve for the users of training clicks, as further rows
    without a click, so that training rows look like the candidates of a request. A
    click's probability is then no longer that of an impression: needs `calibration`."""
    calibration: CalibrationKind = "none"
    """What is fitted on the validation rows after training and applied to every
    prediction: temperature (a slope of the logit), platt (slope and intercept) or
    isotonic (steps). A label that is a value gets a factor. It needs 100 validation
    rows of each class."""
    epochs: Count | None = None
    """How often the ranker reads the rows. Default: `train.epochs`."""
    refit: bool = False
    """Train anew on training and validation rows before serving, as long as the first
    fit was best on the validation rows, and keep its blend and its calibration. On
    Criteo it raised the AUC on later rows from 0.776 to 0.778 (a tenth added to seven,
    three seeds)."""
    blend: Literal["auto", "none"] = "auto"
    """auto: the served click logit is `a * ranker + b * towers + c` with weights from 0
    that are fitted on the validation rows, if that lowers their log loss by more than
    its noise; otherwise the ranker serves alone. `metrics.json` and the report say
    which. It needs 100 validation rows of each class."""
    optimizer: OptimizerConfig = OptimizerConfig(tables_lr=0.05, dense_lr=0.002)
    """A table that is warm-started and then hardly moves ranks worse than a fresh one:
    the learning rate of the tables stays high."""

    @model_validator(mode="after")
    def _no_label_is_given_itself(self) -> Self:
        parents_first(self.conditional)
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.model_dim % self.heads:
            raise ValueError(
                f"model_dim {self.model_dim} must be a multiple of heads {self.heads}"
            )
        if self.model == "finalmlp" and self.hidden[-1] % self.heads:
            raise ValueError(
                f"finalmlp: the last of hidden {self.hidden} must be a multiple of"
                f" heads {self.heads}"
            )
        return self

    @model_validator(mode="after")
    def _drawn_rows_are_calibrated(self) -> Self:
        if self.retrieved_negatives.per_click and self.calibration == "none":
            raise ValueError(
                "retrieved_negatives without a calibration: the click would be that of"
                " rows which nobody was shown, far too low; set calibration to platt"
            )
        return self

    @model_validator(mode="after")
    def _own_tables_start_fresh(self) -> Self:
        for name, default in (("seeds", 1), ("embedding_dim", None)):
            value = getattr(self, name)
            if value != default and self.tables != "scratch":
                raise ValueError(
                    f"{name} {value} with tables {self.tables}: the towers' tables have"
                    " a width of their own, and vectors for one model; set tables to"
                    " scratch"
                )
        return self


class TrainConfig(Settings):
    """The training loop, the same for towers and ranker."""

    batch_size: Count = 1024
    """Rows of one optimizer step over *all* ranks, so that the number of ranks does not
    change what a run means."""
    eval_batch_size: Count = 4096
    """Rows of one step of an evaluation, over all ranks; it changes no figure."""
    epochs: Count = 1
    """How often the training rows are read."""
    checkpoint_every: Count = 200
    """Steps between two checkpoints."""
    keep_checkpoints: Count = 2
    """Number of latest checkpoints that stay; the best one stays too."""
    log_every: Count = 20
    """Steps between two points of the loss curve."""
    health_every: Annotated[int, Field(ge=0)] = 200
    """Steps between two measurements of norms, touched rows and the ads' effective
    rank, for TensorBoard; 0: never."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "float32"
    """Precision of the dense products. auto: bfloat16 where a measurement at the start
    finds it faster. tf32: float32 numbers of which a GPU's products read 10 bits after
    the point. Tables, logits and the optimizers stay float32."""
    compile: bool = False
    """torch.compile of the towers' dense parts; costs half a minute at the start."""
    checkpoint_activations: bool = False
    """Keep the inputs of each attention layer alone, and compute what is inside again
    in backward: less memory for more time, and the same gradients. A ranker of four
    layers took 1,203 MiB in place of 1,938 (`benchmarks/memory.py`). Without effect on
    models without attention."""
    graphs: bool = True
    """On one GPU: run heads, loss and their backward pass as one CUDA graph, which
    costs the host one launch in place of some 150. Without effect where the schema has
    histories, whose number of ids changes from step to step."""
    dead_model: Literal["raise", "warn"] = "raise"
    """The answer to a model that learns nothing (constant logits, or an AUC of 0.5)."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two evaluations on the validation split; 0: only at the end."""
    segment: str | None = None
    """The id column for each of whose values calibration is reported. Default: of the
    columns with 2 to 20 values, the one that is known in most rows."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many evaluations without a better validation log loss, and go back
    to the best checkpoint. Needs `evaluate_every`."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How many times `adrec run` starts all ranks again after one died."""
    hang_seconds: Annotated[float, Field(gt=0)] = 300
    """Seconds without a step after which a rank prints where all ranks are and ends."""
    ledger: bool = False
    """Record the rows of every step; `adrec checkpoint ledger` compares them with the
    rows of the training split."""
    reader: Literal["auto", "thread", "process"] = "auto"
    """How rows are read ahead. process: in another process, so that Python is free to
    launch kernels. auto: process on GPUs, else thread."""
    shuffle_window: Count = 1_000_000
    """Rows that are shuffled together, within row groups drawn in random order."""

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> Self:
        if self.patience is not None and not self.evaluate_every:
            raise ValueError("`patience` counts evaluations: set `evaluate_every` too")
        return self
