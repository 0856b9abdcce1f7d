"""Only those stages of a run that a question needs, each as `adrec run` launches it."""

from pathlib import Path

from torchrec_adrec.config.run import Config
from torchrec_adrec.pipeline.pipeline import launch
from torchrec_adrec.runs.run_folder import command_in
from torchrec_adrec.runs.stages import STAGES, is_done


def run_stages(
    config: Path | None, overrides: list[str], out: Path, job: str, *names: str
) -> Config:
    """Run the named stages in their order, those that are done already left out."""
    with command_in(out, config, overrides) as settings:
        for name in names:
            if not is_done(STAGES[name], settings, out):
                launch([STAGES[name]], settings, out, job)
        return settings


def share_data(base: Path, out: Path) -> None:
    """Let a run read the prepared data of another one with the same data settings."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "data").exists():
        (out / "data").symlink_to((base / "data").resolve())
