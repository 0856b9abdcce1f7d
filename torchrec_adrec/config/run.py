"""One run, complete: typed settings, read from YAML with `extends:` and overrides.

Holds no torch, so that reading a configuration costs milliseconds. The file that a run
saves beside its output (`config.yaml`) holds every setting, defaults included.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from torchrec_adrec.config.base import Count, Fraction, Settings
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.config.errors import explain
from torchrec_adrec.config.train import (
    RankingConfig,
    RetrievalConfig,
    ShardingConfig,
    TrainConfig,
)
from torchrec_adrec.errors import ConfigError


class IndexConfig(Settings):
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


class RecommendConfig(Settings):
    """From all ads to the few that are shown."""

    candidates: Count = 500
    top: Count = 10

    @model_validator(mode="after")
    def _top_of_candidates(self) -> Self:
        if self.top > self.candidates:
            raise ValueError(f"top {self.top} exceeds the {self.candidates} candidates")
        return self


class Config(Settings):
    """One run, complete."""

    seed: Annotated[int, Field(ge=0, lt=2**23)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = DataConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    ranking: RankingConfig = RankingConfig()
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
