"""A stage that another run has made from the same inputs is not made again.

Its files get a second name in this run (hard links), so they take no room, and either
run may be removed without harm to the other.
"""

import os
import shutil
from pathlib import Path

from torchrec_adrec.config.run import Config
from torchrec_adrec.runs.stage_folder import publish
from torchrec_adrec.runs.stages import Stage, describe, record_of


def share_stage(stage: Stage, config: Config, run: Path, others: list[Path]) -> bool:
    """Take a stage from another run if one has it; return whether one had.

    Args:
        stage: whose inputs are all there.
        config: of this run.
        run: its folder, held by this command.
        others: folders of the sweep's runs.
    """
    expected = describe(stage, config, run).input_fingerprint
    for other in others:
        record = record_of(other / stage.name)
        if other != run and record and record.input_fingerprint == expected:
            _link(other / stage.name, run / stage.name)
            return True
    return False


def _link(source: Path, final: Path) -> None:
    # Another name than a stage would resume from: half a copy is no work of its own.
    partial = final.with_name(f"{final.name}.partial-shared")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link_file)
    publish(partial, final)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
