"""One run, complete: typed settings, read from YAML with `extends:` and overrides.

Holds no torch, so that reading a configuration costs milliseconds. The file that a run
saves beside its output (`config.yaml`) holds every setting, defaults included.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from torchrec_adrec.config_errors import explain
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.table_config import TableConfig

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Bounds = Literal["raise", "clamp", "unknown"]


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True
    )


class SplitConfig(_Settings):
    """Which rows are trained on, and which are held out."""

    by: Literal["time", "user", "random"] = "time"
    """time: the latest rows are held out, as a live system meets them. user: all rows
    of a user stand in one split. random: row by row, which lets the future in."""
    train: Annotated[float, Field(gt=0, lt=1)] = 0.8
    valid: Fraction = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.valid + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + valid + test must be 1, found {total:g}")
        return self


class SyntheticConfig(_Settings):
    """An ad world whose law is known (docs/known_world.md); needs no download."""

    rows: Count = 200_000
    ads: Count = 2_000
    users: Count = 20_000
    days: Count = 14
    """Length of the log."""
    cold_share: Fraction = 0.3
    """Share of the ads that are not there on the first day."""
    cohorts: Count = 13
    """Times, evenly spread over the days, at which the cold ads are born."""
    affinity: Rate = 6.0
    """Weight of user . ad in the click's logit; 0: one ranking is best for everyone."""
    drift: Rate = 0.5
    """Angle in radians by which tastes turn from the first day to the last."""
    position_bias: Rate = 0.5
    """Power by which examination falls with the position; 0: all are examined."""


class NumbersConfig(_Settings):
    """How the integers of Criteo rows become inputs."""

    transform: Literal["log_standard", "standard", "log"] = "log_standard"
    buckets: Literal["log_square", "quantile"] | None = "log_square"
    """Each number is also an id, made discrete like this; null: a number only."""


class DataConfig(_Settings):
    """Raw files and how they become ids and floats."""

    adapter: Literal["criteo", "synthetic", "kuairand", "table"] = "criteo"
    raw: tuple[str, ...] = ()
    """Raw files, in time order; one path may be written without a list. A pattern, as
    day_*.gz, stands for its files in name order, day_2 before day_10."""
    labelled: bool = True
    """Whether Criteo files without a header have the label in front."""
    ad_features: tuple[str, ...] = ("C2", "C14", "C15", "C18", "C25")
    """The raw columns that describe the ad; every other feature is the user's side."""
    allow_leaky_sides: bool = False
    """Go on although a user column determines an ad column in over 95% of its rows."""
    split: SplitConfig = SplitConfig()
    numbers: NumbersConfig = NumbersConfig()
    ids: Literal["frequency", "hash"] = "frequency"
    """frequency: a vocabulary of the training rows. hash: no vocabulary is held, no
    value is unknown, and some values share a row."""
    min_count: Count = 5
    """Values seen less often in training become `unknown` (id 1)."""
    hash_size: Annotated[int, Field(ge=3)] = 100_000
    """Rows of every table with `ids: hash`."""
    bounds: Bounds = "raise"
    """What to do with an id outside its table, a number that is not finite or a label
    outside its range: stop and name it; take the nearest valid value; or take the
    unknown id, the mean, and a label that was not observed. Counted and logged. In
    `prepare` a number that is not finite becomes the mean either way."""
    max_bad_rows: Fraction = 0.001
    """Share of unreadable lines above which `prepare` stops."""
    chunk_megabytes: Count = 32
    """Raw text held in memory at a time."""
    synthetic: SyntheticConfig = SyntheticConfig()
    table: TableConfig | None = None
    """What the columns mean, for the adapter `table`: docs/own_data.md."""

    @model_validator(mode="before")
    @classmethod
    def _one_path_is_a_list(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("raw"), str):
            return {**values, "raw": [values["raw"]]}
        return values


class OptimizerConfig(_Settings):
    """Row-wise Adagrad for the tables (fused into backward), AdamW for the rest."""

    tables_lr: Rate = 0.02
    dense_lr: Rate = 0.001
    weight_decay: Rate = 1e-5


class TowersConfig(_Settings):
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


class RankerConfig(_Settings):
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


class TrainConfig(_Settings):
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
    shuffle_window: Count = 1_000_000
    """Rows that are shuffled together, within row groups drawn in random order."""


class ShardingConfig(_Settings):
    """What the planner may choose from. `data_parallel` is left out on purpose: with an
    optimizer inside backward such tables never train, and nothing says so.
    """

    types: tuple[Literal["table_wise", "row_wise", "table_row_wise"], ...] = (
        "table_wise",
        "row_wise",
    )


class IndexConfig(_Settings):
    """The FAISS index over all ads, in shards."""

    kind: Literal["auto", "exact", "ivf_flat"] = "auto"
    """auto: exact to 100,000 ads, IVF beyond."""
    shards: Count = 2
    nlist: Annotated[int, Field(ge=0)] = 0
    """Number of inverted lists; 0 means 4 * sqrt(number of ads)."""
    target_recall: Fraction = 0.95
    """Recall against brute force at `recommend.candidates` below which the index is not
    published."""
    queries: Count = 1_000
    """Held-out users that the gate asks with."""


class RecommendConfig(_Settings):
    """From all ads to the few that are shown."""

    candidates: Count = 500
    top: Count = 10

    @model_validator(mode="after")
    def _top_of_candidates(self) -> Self:
        if self.top > self.candidates:
            raise ValueError(f"top {self.top} exceeds the {self.candidates} candidates")
        return self


class Config(_Settings):
    """One run, complete."""

    seed: Annotated[int, Field(ge=0, lt=2**23)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = DataConfig()
    towers: TowersConfig = TowersConfig()
    ranker: RankerConfig = RankerConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    index: IndexConfig = IndexConfig()
    recommend: RecommendConfig = RecommendConfig()

    def save(self, path: Path) -> None:
        """Write every setting, defaults included, as YAML."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: YAML file; `extends: other.yaml` names a file beside it to start from.
            None: the defaults.
        overrides: `dotted.key=value` words, the value in YAML.

    Raises:
        ConfigError: no such file, no YAML, an unknown key (the nearest is named), a
            value out of range.
    """
    values = _read_yaml(path) if path is not None else {}
    for word in overrides:
        values = _merge(values, _override(word))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        where = f"{path}: " if path is not None else ""
        raise ConfigError(where + "; ".join(explain(error, Config))) from None


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` leads back to itself")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys with values, found {values!r}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: `extends` expects one file name, found {base!r}")
    return _merge(_read_yaml(path.parent / base, (*seen, path.resolve())), values)


def _override(word: str) -> dict[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"expected key=value (as train.batch_size=4096), found {word!r}"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{word!r}: the value is no YAML") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged
