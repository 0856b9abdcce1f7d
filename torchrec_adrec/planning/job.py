"""The training that is to be planned: columns, settings, batch, number of ads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.config.sharding import ShardingConfig
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Schema

CLICKED = 0.25  # of rows, where nobody says: Criteo Kaggle's


@dataclass(frozen=True)
class Job:
    """One training of the towers, with the settings that its estimate depends on.

    Attributes:
        retrieval: the towers.
        sharding: what the planner may choose from.
        precision: `train.precision`.
        index_shards: how many parts the index has.
        batch: rows of a step over all ranks.
        ads: how many the index will hold, where that is known.
        clicked: share of rows whose first label is 1, the anchors of the softmax.
    """

    schema: Schema
    retrieval: RetrievalConfig
    sharding: ShardingConfig
    precision: str
    index_shards: int
    batch: int
    ads: int | None
    clicked: float = CLICKED

    @classmethod
    def of(
        cls,
        schema: Schema,
        config: Config,
        batch: int | None = None,
        ads: int | None = None,
        clicked: float | None = None,
    ) -> "Job":
        """Take from a run's settings what an estimate needs.

        Args:
            schema: its table sizes are fitted.
            config: of the run.
            batch: see `Job`; default `train.batch_size`.
            ads: see `Job`.
            clicked: see `Job`; default that of Criteo Kaggle.
        """
        return cls(
            schema,
            config.retrieval,
            config.sharding,
            config.train.precision,
            config.index.shards,
            batch or config.train.batch_size,
            ads,
            clicked or CLICKED,
        )

    @classmethod
    def read(
        cls,
        schema: Path | None,
        out: Path | None,
        config: Path | None,
        overrides: Sequence[str],
        batch: int | None,
        ads: int | None,
        clicked: float | None = None,
    ) -> "Job":
        """Read a schema file, or what `prepare` left in a run.

        Args:
            schema: the file; either this or `out`.
            out: a run whose data are prepared.
            config: settings; default those of the run.
            overrides: `dotted.key=value`, over the settings.
            batch: see `Job`; default `train.batch_size`.
            ads: see `Job`; default the run's.
            clicked: see `Job`; default the run's.

        Raises:
            ConfigError: neither or both are named, or tables of unknown size.
        """
        if (schema is None) == (out is None):
            raise ConfigError("name the columns: either --schema FILE or --out RUN")
        if out is not None:
            schema = out / "data/schema.json"
            config = config or out / "config.yaml"
            report = _report(out / "data/report.json")
            ads = ads or report.get("ads", {}).get("all")
            clicked = clicked or _clicked(report, Schema.load(schema))
        assert schema is not None
        settings, columns = load_config(config, overrides), Schema.load(schema)
        # A table of no rows would be planned without a word and cost nothing.
        empty = [f.name for f in columns.bags if not f.num_embeddings]
        if empty:
            raise ConfigError(
                f"{schema}: no table size for {', '.join(empty)}; `adrec prepare` fits"
                " them, or write num_embeddings"
            )
        return cls.of(columns, settings, batch, ads, clicked)


def _report(path: Path) -> dict[str, Any]:
    """Read what `prepare` counted; nothing where there is no report."""
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _clicked(report: dict[str, Any], schema: Schema) -> float | None:
    """The share of clicked training rows, where the report has it."""
    rates = report.get("splits", {}).get("train", {}).get("label_rate", {})
    return rates.get(schema.labels[0].name)  # type: ignore[no-any-return]
