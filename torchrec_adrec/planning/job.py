"""What is to be trained: columns, settings, batch, number of ads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrec_adrec.config import Config, load_config
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Schema


@dataclass(frozen=True)
class Job:
    """One training of the towers.

    Attributes:
        batch: rows of a step over all ranks.
        ads: how many the index will hold, where that is known.
    """

    schema: Schema
    config: Config
    batch: int
    ads: int | None

    @classmethod
    def read(
        cls,
        schema: Path | None,
        out: Path | None,
        config: Path | None,
        overrides: Sequence[str],
        batch: int | None,
        ads: int | None,
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
            ads = ads or _ads(out / "data/report.json")
        assert schema is not None
        settings, columns = load_config(config, overrides), Schema.load(schema)
        empty = [f.name for f in columns.bags if not f.num_embeddings]
        if empty:
            raise ConfigError(
                f"{schema}: no table size for {', '.join(empty)}; `adrec prepare` fits"
                " them, or write num_embeddings"
            )
        return cls(columns, settings, batch or settings.train.batch_size, ads)


def _ads(report: Path) -> int | None:
    try:
        return int(json.loads(report.read_text())["ads"]["all"])
    except (OSError, ValueError, KeyError):
        return None
