"""One file per data set: raw files to typed rows and a schema."""

from pathlib import Path

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.adapters import criteo, kuairand, synthetic, table
from torchrec_adrec.data.dataset import DataSet, raw_files
from torchrec_adrec.runtime.ranks import Ranks

ADAPTERS = {
    "criteo": criteo.open_data,
    "kuairand": kuairand.open_data,
    "table": table.open_data,
}


def files_read(config: DataConfig) -> tuple[Path, ...]:
    """Every file of which the rows are made; none for the synthetic adapter.

    Raises:
        ConfigError: one is missing.
    """
    if config.adapter == "synthetic":
        return ()
    if config.adapter == "kuairand":
        return kuairand.files_read(config)
    return raw_files(config)


def open_data(config: DataConfig, seed: int, folder: Path, ranks: Ranks) -> DataSet:
    """The data set that the settings name.

    Args:
        folder: where the synthetic adapter makes its files, once for all ranks.
    """
    if config.adapter != "synthetic":
        return ADAPTERS[config.adapter](config)
    if ranks.is_first:
        rows, truth = folder / synthetic.TSV, folder / synthetic.TRUTH
        synthetic.write(config.synthetic, seed, rows, truth)
    ranks.barrier()
    return synthetic.open_data(config, folder)
