"""The changes of a run's ads, which have versions as a stage has them."""

from pathlib import Path

from torchrec_adrec.index.changes import CHANGES, Changes
from torchrec_adrec.index.manifest import EmbeddingManifest
from torchrec_adrec.runs.versions import VERSIONS, current_name


def open_changes(
    run: Path, exported: EmbeddingManifest, name: str | None = None
) -> Changes:
    """Read the current changes of a run and prove that they belong to its export.

    Args:
        run: its folder.
        exported: the manifest of its export.
        name: of other changes than the current ones; empty: none.

    Raises:
        ManifestError: they are damaged, or of another export.
    """
    name = changes_name(run) if name is None else name
    if not name:
        return Changes.none(exported)
    changes = Changes.load(run / CHANGES / VERSIONS / name)
    changes.check_source(run / CHANGES, exported)
    return changes


def changes_name(run: Path) -> str:
    """Return the name of the current version of the changes; empty: there is none.

    Raises:
        ManifestError: the file that should name it is damaged.
    """
    return current_name(run / CHANGES) or ""


def newest_changes(run: Path) -> Changes | None:
    """Read the current changes of a run, of whatever export; None: there are none.

    Raises:
        ManifestError: they are damaged.
    """
    name = changes_name(run)
    return Changes.load(run / CHANGES / VERSIONS / name) if name else None
