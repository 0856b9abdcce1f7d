"""What is to be trained: columns, settings, batch, number of ads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Schema

CLICKED = 0.25  # of rows, where nobody says: Criteo Kaggle's


@dataclass(frozen=True)
class Job:
    """One training of the towers.

    Attributes:
        batch: rows of a step over all ranks.
        ads: how many the index will hold, where that is known.
        clicked: share of rows whose first label is 1, the anchors of the softmax.
    """

    schema: Schema
    config: Config
    batch: int
    ads: int | None
    clicked: float = CLICKED

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
        """From a schema file, or from a run whose data are prepared.

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
        empty = [f.name for f in columns.bags if not f.num_embeddings]
        if empty:
            raise ConfigError(
                f"{schema}: no table size for {', '.join(empty)}; `adrec prepare` fits"
                " them, or write num_embeddings"
            )
        return cls(
            columns,
            settings,
            batch or settings.train.batch_size,
            ads,
            clicked or CLICKED,
        )


def _report(path: Path) -> dict[str, Any]:
    """What `prepare` counted; nothing where there is no report."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _clicked(report: dict[str, Any], schema: Schema) -> float | None:
    rates = report.get("splits", {}).get("train", {}).get("label_rate", {})
    return rates.get(schema.labels[0].name)  # type: ignore[no-any-return]
