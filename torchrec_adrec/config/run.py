"""All settings of one run, typed, read from YAML with `extends:` and overrides.

This imports no torch, so that reading a configuration costs milliseconds. The file that
a run saves with its output (`config.yaml`) holds every setting, defaults included.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from torchrec_adrec.config.base import Count, Seed, Settings
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.config.errors import explain
from torchrec_adrec.config.formula import Formula
from torchrec_adrec.config.index import IndexConfig
from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.config.sharding import ShardingConfig
from torchrec_adrec.config.train import RankingConfig, RetrievalConfig, TrainConfig
from torchrec_adrec.errors import ConfigError, reason

LOG_LOSS = "log_loss"
VectorType = Literal["fp32", "fp16"]


class ExportConfig(Settings):
    """The vectors of all ads."""

    dtype: VectorType = "fp32"
    """Precision in which vectors are written. fp16 takes half the disk, and rounds each
    number to 11 significant bits: a vector moves by less than a thousandth of its
    length."""


class EvaluationConfig(Settings):
    """How retrieval is judged over the whole catalog, and the funnel on users."""

    queries: Count = 20_000
    """Clicked test rows that are searched for, drawn with `seed` where there are more.
    Every figure has an interval that says what the draw leaves open. The time grows
    with queries times ads: 20,000 against 400,000 ads took over ten minutes on two busy
    cores."""
    valid_queries: Annotated[int, Field(ge=0)] = 0
    """Clicked validation rows that `export` searches for too, with the towers alone: by
    these settings of the towers are chosen (`adrec sweep`). 0: none."""
    exclude_known: bool = False
    """Whether `export` leaves out of a user's candidates the ads that he is known to
    have clicked, in his history or in an earlier split, and does not ask for a click on
    one of them: so the literature judges where people do not take the same thing twice.
    Towers give these ads the highest scores, so figures with and without them do not
    compare; the protocol in `export/metrics.json` says which they are."""
    funnel_users: Annotated[int, Field(ge=1, le=2_000)] = 200
    """Held-out users whose served ads are judged, each by one request as it is served,
    drawn with `seed`; `prepare` keeps 2,000 of them. In the demo 200 leave the share of
    the oracle's worth open by about 0.02 on either side."""
    funnel_depth: Count = 2
    """How many times the candidates the exact search looks at, to tell what more
    candidates would bring (truncation loss) from what the towers do not find at all
    (tower loss)."""
    logged_rows: Annotated[int, Field(ge=1, le=20_000)] = 5_000
    """Test rows with a propensity that `adrec evaluate off-policy` reads, drawn with
    `seed`; `prepare` keeps 20,000 of them. Each is a request."""
    min_effective_rows: Count = 100
    """Effective number of rows below which an off-policy estimate is refused: with 100
    its standard error is about a tenth of the reward's standard deviation."""


EngineName = Literal["float32", "bfloat16", "int8", "compiled", "auto"]


class RecommendConfig(Settings):
    """How many ads the ranker gets, how fast, how many are shown, in which order."""

    candidates: Count = 500
    """Number of ads that the index returns for a user and that the ranker orders. A
    smaller catalog is ranked as a whole."""
    top: Count = 10
    """Number of ads of an answer, where the request names none."""
    rank_by: str | None = None
    """The number by which ads are ordered, the highest first: a formula of names,
    numbers, + - * / and parentheses, as `click * value` or `click * bid`. Names are
    the labels, which mean their predictions, and the numbers of the ad's side as they
    are in the raw data. Default: the first label, the click. Ads of the same number are
    in the order of their ids."""
    engine: EngineName = "float32"
    """How the ranker's dense part is computed (docs/ranking_speed.md). bfloat16: 1.4 to
    1.7 times as fast on a processor that multiplies it faster; int8: 8-bit integers;
    compiled: torch.compile, which takes half a minute at the start. auto: the fastest
    of float32, bfloat16 and int8 within `max_score_error`, measured on example users
    when the run is opened."""
    max_score_error: Annotated[float, Field(gt=0)] = 0.02
    """Largest difference of a logit from float32, above which an engine is refused:
    0.02 changes odds, or a predicted value, by 2%."""
    table_type: Literal["float32", "float16", "int8"] = "float32"
    """Numbers of the ranker's tables while they serve. float16 and int8 take half of
    the memory or less, and look up all tables of a side at once, which is five times as
    fast for the one user of a request."""
    ad_vectors_gb: Annotated[float, Field(ge=0)] = 1
    """Memory for the vectors of all ads, looked up when the run is opened; where they
    need more, each request looks up its own ads."""

    @property
    def serves_exactly(self) -> bool:
        """Whether the ranker serves in the numbers that it was trained in."""
        return self.engine == self.table_type == "float32"

    @model_validator(mode="after")
    def _top_of_candidates(self) -> Self:
        if self.top > self.candidates:
            raise ValueError(f"top {self.top} exceeds the {self.candidates} candidates")
        return self

    @field_validator("rank_by")
    @classmethod
    def _is_a_formula(cls, rank_by: str | None) -> str | None:
        # Its names are checked by the recommender, which knows labels and catalog.
        if rank_by is not None:
            Formula.parse(rank_by)
        return rank_by


class Config(Settings):
    """All settings of one run."""

    seed: Seed = 0
    """Draws whatever is random: the split by row, the order of the rows, weights at the
    start, dropout, negatives, samples, and the synthetic world."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where PyTorch has one, else the CPU."""
    data: DataConfig = DataConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    ranking: RankingConfig = RankingConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    export: ExportConfig = ExportConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    index: IndexConfig = IndexConfig()
    recommend: RecommendConfig = RecommendConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _no_click_counts_twice(self) -> Self:
        rules, text = self.ranking.conditional, self.recommend.rank_by
        formula = Formula.parse(text) if text else None
        for name in rules if formula else ():
            given = name
            while given in rules:
                given = rules[given].given
                if formula and formula.multiplies(name, given):
                    raise ValueError(
                        f"recommend.rank_by {text!r} multiplies {name} by {given}, but"
                        f" with ranking.conditional the prediction of {name} is the"
                        f" product already: leave {given} out of the formula"
                    )
        return self

    @model_validator(mode="after")
    def _a_log_loss_that_is_judged_is_learnt(self) -> Self:
        towers = self.retrieval
        if self.positives_alone and towers.alpha > 0:
            raise ValueError(
                f"retrieval.alpha is {towers.alpha:g}, but with positives alone and"
                " `negatives: 0` every row is a click, which teaches no log loss; set"
                " retrieval.alpha=0, or draw negatives"
            )
        if not towers.alpha and self.train.evaluate_every and towers.judge == LOG_LOSS:
            raise ValueError(
                "retrieval.alpha is 0, so the log loss by which `train.evaluate_every`"
                " would choose a checkpoint is not learnt; set retrieval.judge=ndcg@10"
            )
        return self

    @property
    def positives_alone(self) -> bool:
        """Whether every row is a click, and no negatives are drawn."""
        # Nobody sets this for another adapter, whose name is no business of this room.
        if not self.data.sequences.negatives:
            return True
        if self.data.table is None:
            return False
        first = next(iter(self.data.table.labels.values()))
        return first.positives_only and not first.negatives

    @property
    def data_seed(self) -> int:
        """The seed that draws the rows."""
        return self.seed if self.data.seed is None else self.data.seed

    def loop_of(self, task: str) -> TrainConfig:
        """The training loop of a task: the ranker may read the rows more often."""
        epochs = self.ranking.epochs if task == "ranking" else None
        return self.train.model_copy(update={"epochs": epochs or self.train.epochs})

    def save(self, path: Path) -> None:
        """Write every setting, defaults included, as YAML."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: YAML file; `extends: other.yaml` names a file of the same folder whose
            settings it starts from. None: the defaults.
        overrides: settings as `dotted.key=value`, the value in YAML.

    Raises:
        ConfigError: no such file, no YAML, no settings, an unknown key (with its new
            name or the nearest one), or a value out of range.
    """
    values = _read_yaml(path) if path is not None else {}
    # Whoever names a file means what stood in it, and not the defaults.
    if path is not None and not values:
        raise ConfigError(
            f"{path} holds no settings: it was emptied; write them again, or name no"
            " file to have the defaults"
        )
    for override in overrides:
        values = _merge(values, _read_override(override))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        where = f"{path}: " if path is not None else ""
        raise ConfigError(where + "; ".join(explain(error, Config))) from None


def _read_yaml(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a file, on top of those of the file that it extends."""
    if path.resolve() in extending:
        raise ConfigError(f"{path}: `extends` leads back to itself")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {reason(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys with values, found {values!r}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: `extends` expects one file name, found {base!r}")
    extended = _read_yaml(path.parent / base, (*extending, path.resolve()))
    return _merge(extended, values)


def _read_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"expected key=value (as train.batch_size=4096), found {override!r}"
        )
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"{override!r}: the value is no YAML") from None
    # From the inside out: a.b=1 becomes {a: {b: 1}}, to be merged like a file.
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes: blocks are merged key by key, all else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        are_blocks = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if are_blocks else value  # type: ignore[arg-type]
    return merged
