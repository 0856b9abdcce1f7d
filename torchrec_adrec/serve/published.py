"""Names what is published in the folder of a run, to tell whether it has changed."""

import hashlib
from pathlib import Path

from torchrec_adrec.errors import ManifestError
from torchrec_adrec.runs.ad_changes import changes_name
from torchrec_adrec.runs.stages import (
    EXPORT,
    INDEX,
    RANKING,
    RECORD,
    RETRIEVAL,
    stage_folder,
)
from torchrec_adrec.runs.unpack import BUNDLE
from torchrec_adrec.serve.bundle import CERTIFICATE

CHANGED = "+"  # between the build of an index and the changes of its ads


def published_state(run: Path) -> str:
    """Name the state of a run's folder; another one after every build and update.

    So is one after every certificate, and that of every bundle.
    """
    stages = (RETRIEVAL, EXPORT, INDEX, RANKING)
    paths = [stage_folder(run, stage.name) / RECORD for stage in stages]
    paths += [run / BUNDLE, run / CERTIFICATE]
    texts = [path.read_bytes() if path.exists() else b"" for path in paths]
    build = hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]
    return f"{build}{CHANGED}{changes_name(run)}"


def is_same_build(state: str, other: str) -> bool:
    """Whether two states of a run differ in the changes of its ads at most."""
    return state.partition(CHANGED)[0] == other.partition(CHANGED)[0]


def loaded_state(run: Path, before: str, changes: str) -> str:
    """Return the state that was loaded, if no stage was built again meanwhile.

    Ads may have been updated meanwhile, or nothing could ever be loaded of a run that
    is updated every second.

    Args:
        run: its folder.
        before: its state when the loading began.
        changes: name of the changes that were loaded.

    Raises:
        ManifestError: a stage was built again.
    """
    if not is_same_build(published_state(run), before):
        raise ManifestError(f"{run} was changed while it was being loaded")
    return f"{before.partition(CHANGED)[0]}{CHANGED}{changes}"
