"""The file of a sweep: which runs it makes, and by which figure they are compared."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from torchrec_adrec.config.base import Seed, Settings
from torchrec_adrec.config.errors import explain
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.errors import ConfigError, reason
from torchrec_adrec.sweep.metric import OF_LISTS, Metric

VALID_QUERIES = 2_000  # clicks that choose between towers, if the file names no number
BASE = "base"  # the variant of a file that names none

Number = int | float


class Range(Settings):
    """The numbers among which a search looks; whole ones if both ends are."""

    low: Number
    """The lowest, which may be drawn."""
    high: Number
    """The highest, which may be drawn."""
    log: bool = False
    """Draw evenly on a logarithmic scale, as learning rates are best."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 on a logarithmic scale")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Sweep(Settings):
    """The file of a sweep."""

    config: str
    """The configuration that all runs start from, beside this file."""
    settings: dict[str, Any] = Field({})
    """Settings of all runs, `dotted.key: value`."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """A run for each; the spread over them stands in the table."""
    stages: Annotated[
        tuple[Literal["retrieval", "export", "ranking"], ...], Field(min_length=1)
    ] = ("retrieval", "ranking")
    """What is made of each run; data is prepared in any case, and towers for a
    ranker."""
    metric: str = ""
    """The figure on validation rows that chooses, as ranking.click.auc."""
    variants: dict[str, dict[str, Any] | None] = Field({})
    """Name -> what differs, `dotted.key: value`."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({})
    """Setting -> its values; every combination of them is a variant."""
    search: dict[str, Range | Annotated[list[Any], Field(min_length=1)]] = Field({})
    """Setting -> where Optuna looks for its best value: a range, or a list."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.search and (self.variants or self.grid):
            raise ValueError("`search` draws its variants: leave variants and grid out")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: one of them is there twice")
        return self


@dataclass(frozen=True)
class Variant:
    """Names what differs from the settings of all runs.

    Attributes:
        name: in the table, and of the folder of its runs.
        settings: dotted key -> value.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A sweep that was read and whose every setting exists.

    Attributes:
        sweep: the file.
        config: path of the configuration that all runs start from.
        common: settings of all runs, `key=value`.
        variants: one, if it is a search.
        metric: that chooses.
    """

    sweep: Sweep
    config: Path
    common: tuple[str, ...]
    variants: tuple[Variant, ...]
    metric: Metric

    @property
    def stages(self) -> tuple[str, ...]:
        """All stages of a run, in the order in which they are made."""
        order = ("retrieval", "export", "ranking")
        asked = {"retrieval", *self.sweep.stages}
        return ("data", *(stage for stage in order if stage in asked))

    def words(self, variant: Variant, seed: int) -> list[str]:
        """Return the settings of one run, as a command line has them."""
        return [*self.common, *_words(variant.settings), f"seed={seed}"]


def read_sweep(path: Path, overrides: Iterable[str] = ()) -> Plan:
    """Read the file of a sweep and check every setting of every run.

    Args:
        path: YAML.
        overrides: settings of all runs, `key=value`, in place of those of the file; a
            variant that names the same key keeps its own.

    Raises:
        ConfigError: names the file, and the key or value that cannot be used.
    """
    sweep = _parse(path)
    metric = _metric(sweep, path)
    # A run that dies is reported; begun again it would most likely die again.
    common = ["train.restarts=0", *_words(sweep.settings), *overrides]
    if metric.stage == OF_LISTS:
        common.insert(0, f"evaluation.valid_queries={VALID_QUERIES}")
    variants = tuple(_variants(sweep, path))
    plan = Plan(sweep, path.parent / sweep.config, tuple(common), variants, metric)
    for variant in [*variants, *_ends(sweep.search)]:
        _check(plan, variant, path)
    return plan


def _parse(path: Path) -> Sweep:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the sweep {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {reason(error)}") from None
    try:
        return Sweep.model_validate(values)
    except ValidationError as error:
        lines = explain(error, Sweep)
        raise ConfigError(f"{path}: {'; '.join(lines)}") from None


def _metric(sweep: Sweep, path: Path) -> Metric:
    try:
        return Metric.parse(sweep.metric, sweep.stages)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _variants(sweep: Sweep, path: Path) -> Iterator[Variant]:
    """Every named variant with every combination of the grid."""
    named = {name: settings or {} for name, settings in sweep.variants.items()} or {
        "": {}
    }
    folders: set[str] = set()
    for (name, settings), values in product(
        named.items(), product(*sweep.grid.values())
    ):
        combination = dict(zip(sweep.grid, values, strict=True))
        parts = [name, *(f"{_short(k, sweep)}={v}" for k, v in combination.items())]
        variant = Variant(" ".join(filter(None, parts)) or BASE, settings | combination)
        folder = folder_name(variant.name)
        if folder in folders:
            raise ConfigError(
                f"{path}: two variants have the name {variant.name!r} or one that"
                " differs in signs only; name them differently"
            )
        folders.add(folder)
        yield variant


def _short(key: str, sweep: Sweep) -> str:
    """Return the last part of a key, unless another key of the grid ends alike."""
    last = key.rpartition(".")[2]
    alike = [other for other in sweep.grid if other.rpartition(".")[2] == last]
    return last if len(alike) == 1 else key


def folder_name(name: str) -> str:
    """Return the name of a variant as a folder may have it."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip("_.") or BASE


def _words(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _ends(search: Mapping[str, Range | list[Any]]) -> Iterator[Variant]:
    """The two ends of every range, or all values: if they can be used, all can."""
    for key, space in search.items():
        is_range = isinstance(space, Range)
        for value in (space.low, space.high) if is_range else space:  # type: ignore[union-attr]
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"search {key}: {value} is no number to look up to")
            yield Variant(f"search {key}", {key: value})


def _check(plan: Plan, variant: Variant, path: Path) -> Config:
    for key in (*variant.settings, *(w.partition("=")[0] for w in plan.common)):
        if key == "seed":
            raise ConfigError(f"{path}: `seed` is no variant; list them in `seeds`")
    try:
        config = load_config(plan.config, plan.words(variant, plan.sweep.seeds[0]))
    except ConfigError as error:
        raise ConfigError(f"{path}, {variant.name}: {error}") from None
    if not config.data.split.valid and config.data.split.by != "leave_one_out":
        raise ConfigError(
            f"{path}, {variant.name}: data.split.valid is 0, and settings are chosen on"
            " validation rows alone; give them a share"
        )
    return config
