"""Going back to an earlier version of the index, checked as if it were served."""

from pathlib import Path

from torchrec_adrec.errors import ConfigError, ManifestError
from torchrec_adrec.index.manifest import EmbeddingManifest, IndexManifest
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runs.stages import EXPORT, INDEX, check_inputs
from torchrec_adrec.runs.versions import (
    VERSIONS,
    make_current,
    previous_name,
    version_names,
)


def roll_back(run: Path, name: str | None = None) -> str:
    """Make another version of the index current; return a line that says what it is.

    Args:
        run: its folder, held by this command.
        name: of the version; None: the one before the current one.

    Raises:
        ConfigError: there is no version of that name.
        ManifestError: the version or its settings are damaged, or it was built from
            another export than the run's, whose towers are the ones that are served.
    """
    folder = run / INDEX.name
    name = name or previous_name(folder)
    if name not in version_names(folder):
        raise ConfigError(
            f"{folder} has no version {name!r}, expected one of {version_names(folder)}"
        )
    version = folder / VERSIONS / name
    manifest = IndexManifest.load(version)
    exported = EmbeddingManifest.load(run / EXPORT.name)
    if manifest.embeddings != exported:
        raise ManifestError(
            f"{version} was built from vectors of {manifest.embeddings.checkpoint},"
            f" {run / EXPORT.name} holds others, of {exported.checkpoint}: they would"
            " be compared with users of other towers; choose another version, or run"
            " `adrec index`"
        )
    check_inputs(INDEX, run, version)
    stage_settings(version)
    ShardedIndex.load(version, manifest)
    make_current(folder, name)
    return f"{name} is current: {manifest.summary}"
