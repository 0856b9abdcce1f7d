"""The one interface of a data set: what its module gives to the rest of the package.

A data set is one module of this folder and one line in `ADAPTERS` (`__init__.py`).
Most are read from the files of `data.raw`, and are written like this:

    def open_data(config: DataConfig) -> DataSet:
        files = raw_files(config)
        ...  # look at the files' headers, build the schema
        return DataSet(schema, files, read, time="time_ms", user="user_id")

    ADAPTER: Adapter = RawFiles(open_data)

`read(path, bad)` yields frames of good rows and names every other row to `bad`, with
its file and line. `tests/contracts/test_adapters.py` asks all of this of every adapter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.dataset import DataSet, raw_files
from torchrec_adrec.runtime.ranks import Ranks


@dataclass(frozen=True)
class Workspace:
    """Where `prepare` runs; an adapter that makes its own rows writes them here.

    Attributes:
        folder: of the stage, the same for all ranks; emptied when the stage starts.
        seed: of the run.
        ranks: all of them open the data set.
    """

    folder: Path
    seed: int
    ranks: Ranks


class Adapter(Protocol):
    """How one data set is found, opened and read."""

    @property
    def needs_raw(self) -> bool:
        """Whether the data set is read from files that `data.raw` names."""

    def files_read(self, config: DataConfig) -> tuple[Path, ...]:
        """Every file of which the rows are made: a change makes another data set.

        Raises:
            ConfigError: one is missing.
        """

    def open_data(self, config: DataConfig, workspace: Workspace) -> DataSet:
        """The schema with its labels, the files, their reader, the time and the user.

        Raises:
            ConfigError: a file is missing, or a setting does not fit the data set.
            SchemaError: a file has other columns than the data set.
        """


@dataclass(frozen=True)
class MadeHere:
    """The adapter of a data set that `prepare` makes and then reads.

    Attributes:
        write: writes the rows of a config and a seed into a folder.
        open_rows: opens what it wrote.
    """

    write: Callable[[DataConfig, int, Path], None]
    open_rows: Callable[[DataConfig, Path], DataSet]

    @property
    def needs_raw(self) -> bool:
        """Never: config and seed say all of it."""
        return False

    def files_read(self, config: DataConfig) -> tuple[Path, ...]:
        """No files."""
        return ()

    def open_data(self, config: DataConfig, workspace: Workspace) -> DataSet:
        """Write the rows on the first rank, then open them on all of them."""
        if workspace.ranks.is_first:
            self.write(config, workspace.seed, workspace.folder)
        workspace.ranks.barrier()
        return self.open_rows(config, workspace.folder)


@dataclass(frozen=True)
class RawFiles:
    """The adapter of a data set that is read from the files of `data.raw`.

    Attributes:
        open_raw: opens the data set; see `Adapter.open_data`.
        find_files: `Adapter.files_read`; to be given where files are read that
            `data.raw` does not name.
    """

    open_raw: Callable[[DataConfig], DataSet]
    find_files: Callable[[DataConfig], tuple[Path, ...]] = raw_files

    @property
    def needs_raw(self) -> bool:
        """Always: there is nothing else to read."""
        return True

    def files_read(self, config: DataConfig) -> tuple[Path, ...]:
        """The files that `data.raw` names, and those that are read with them."""
        return self.find_files(config)

    def open_data(self, config: DataConfig, workspace: Workspace) -> DataSet:
        """The data set; nothing is written to the workspace."""
        return self.open_raw(config)
