"""One module per data set: raw files to typed rows and a schema.

`ADAPTERS` is the only place that lists them; nothing else asks for a data set by name.
"""

from pathlib import Path

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import (
    criteo,
    kuairand,
    movie_lab,
    sequences,
    synthetic,
    table,
)
from torchrec_adrec.data.adapters.adapter import Adapter, Workspace
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runtime.ranks import Ranks

ADAPTERS: dict[str, Adapter] = {
    "criteo": criteo.ADAPTER,
    "kuairand": kuairand.ADAPTER,
    "movie_lab": movie_lab.ADAPTER,
    "sequences": sequences.ADAPTER,
    "synthetic": synthetic.ADAPTER,
    "table": table.ADAPTER,
}


def check_source(config: DataConfig) -> None:
    """Refuse settings that name no data set, no files of one, or those of another one.

    Raises:
        ConfigError: says what to set.
    """
    adapter = adapter_of(config)
    if adapter.needs_raw and not config.raw:
        raise ConfigError("data.raw is empty; name the raw files: data.raw=PATH")
    # Whoever names files and trains on rows that were made up would take the results
    # for those of the files.
    if config.raw and not adapter.needs_raw:
        readers = ", ".join(name for name, a in ADAPTERS.items() if a.needs_raw)
        raise ConfigError(
            f"data.raw names {config.raw[0]}, but data.adapter={config.adapter} makes"
            f" its own rows and reads no file; set data.adapter to one of {readers}, or"
            " leave data.raw out"
        )
    if config.table is not None and adapter is not table.ADAPTER:
        raise ConfigError(
            f"data.table says what columns mean, but data.adapter={config.adapter}"
            " knows its own; set data.adapter=table, or leave data.table out"
        )


def files_read(config: DataConfig) -> tuple[Path, ...]:
    """Every file of which the rows are made; none where they are made here.

    Raises:
        ConfigError: one is missing.
    """
    return adapter_of(config).files_read(config)


def open_data(config: DataConfig, seed: int, folder: Path, ranks: Ranks) -> DataSet:
    """The data set that the settings name. All ranks call it.

    Args:
        config: names the adapter, the files, and what else the data set asks for.
        seed: of the run, for rows that are made here.
        folder: where they are made, once for all ranks.
        ranks: the processes that share the files.
    """
    return adapter_of(config).open_data(config, Workspace(folder, seed, ranks))


def adapter_of(config: DataConfig) -> Adapter:
    """The adapter that `data.adapter` names.

    Raises:
        ConfigError: there is none of this name.
    """
    # `config/` stands below this room and cannot know the names, so a wrong one is
    # refused here, before a command does anything.
    if config.adapter not in ADAPTERS:
        names = ", ".join(ADAPTERS)
        raise ConfigError(
            f"data.adapter: expected one of {names}, found {config.adapter!r}"
        )
    return ADAPTERS[config.adapter]
