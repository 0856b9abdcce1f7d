"""The settings that a finished stage was made with."""

from collections.abc import Iterable
from pathlib import Path

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.runs.stages import CONFIG, record_of
from torchrec_adrec.runtime.files import changed


def stage_settings(folder: Path, overrides: Iterable[str] = ()) -> Config:
    """Read the settings of a finished stage, as they were written when it was made.

    A file that was cut or emptied is still YAML, and what it no longer names would be
    read as the default.

    Args:
        folder: of the stage, or of one of its versions.
        overrides: settings as `dotted.key=value` in the place of those.

    Raises:
        ConfigError: they cannot be read, or an override cannot be used.
        ManifestError: the file has changed since the stage was made.
    """
    path, record = folder / CONFIG, record_of(folder)
    # A stage of an earlier release has no hash of its settings.
    if record is not None and record.config:
        difference = changed(path, record.config)
        if difference:
            raise ManifestError(
                f"{difference}; put the settings back that {folder} was made with, or"
                " make it again"
            )
    return load_config(path, overrides)
