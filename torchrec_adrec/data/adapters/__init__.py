"""One module per data set: raw files to typed rows and a schema.

`ADAPTERS` is the only place that lists them; nothing else asks for a data set by name.
"""

from pathlib import Path

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import criteo, kuairand, synthetic, table
from torchrec_adrec.data.adapters.adapter import Adapter, Workspace
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runtime.ranks import Ranks

ADAPTERS: dict[str, Adapter] = {
    "criteo": criteo.ADAPTER,
    "kuairand": kuairand.ADAPTER,
    "synthetic": synthetic.ADAPTER,
    "table": table.ADAPTER,
}


def check_source(config: DataConfig) -> None:
    """Refuse settings that name no data set, or no files of one.

    Raises:
        ConfigError: says what to set.
    """
    if adapter_of(config).needs_raw and not config.raw:
        raise ConfigError("data.raw is empty; name the raw files: data.raw=PATH")


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
