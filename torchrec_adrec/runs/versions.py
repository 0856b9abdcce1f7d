"""Versions of a stage: each is whole, one of them is current, the last few are kept.

RUN/index/
  CURRENT                             the name of the version that readers open
  versions/000007-1a2b3c4d5e6f7a8b/   its number and its `build_id`; never changed

Readers follow `CURRENT` once and then stay in one version, whatever is published
meanwhile. It is replaced by renaming, after all files of the version are on the disk.
"""

import re
import shutil
from pathlib import Path

from torchrec_adrec.errors import ManifestError
from torchrec_adrec.runtime.files import sync, write_durably

CURRENT, VERSIONS = "CURRENT", "versions"
NAME = re.compile(r"([0-9]{6})-[0-9a-f]{16}")


def current_name(folder: Path) -> str | None:
    """Return the name of a stage's current version; None where there is none.

    Raises:
        ManifestError: the file that should name it is damaged.
    """
    path = folder / CURRENT
    if not path.exists():
        return None
    name = path.read_text().strip()
    # The text becomes a path: nothing but a version's name may lead anywhere.
    if not NAME.fullmatch(name):
        raise ManifestError(
            f"{path} holds {name[:40]!r}, expected the name of a version; put the name"
            f" of one of {version_names(folder)} there with `adrec versions rollback`"
        )
    return name


def version_folder(folder: Path) -> Path:
    """Return where a stage's files are: its current version, or the folder itself.

    Raises:
        ManifestError: the file that should name the version is damaged.
    """
    name = current_name(folder)
    return folder / VERSIONS / name if name else folder


def version_names(folder: Path) -> list[str]:
    """Return the names of the versions that are there, the oldest first."""
    paths = (folder / VERSIONS).glob("*")
    return sorted(path.name for path in paths if NAME.fullmatch(path.name))


def publish_version(partial: Path, folder: Path, build_id: str, keep: int) -> None:
    """Make a finished folder the current version, and remove the oldest ones.

    If this process is killed, or the disk refuses, at any point, the version before
    stays the current one.

    Args:
        partial: the whole version, on the file system of `folder`; it is moved.
        folder: of the stage.
        build_id: of the version.
        keep: how many versions stay, with the new one.
    """
    for path in (*partial.rglob("*"), partial):
        sync(path)
    names = version_names(folder)
    last = NAME.fullmatch(names[-1]) if names else None
    number = int(last[1]) + 1 if last else 1
    versions = folder / VERSIONS
    versions.mkdir(parents=True, exist_ok=True)
    version = versions / f"{number:06d}-{build_id}"
    partial.rename(version)
    sync(versions)
    make_current(folder, version.name)
    collect(folder, keep)


def make_current(folder: Path, name: str) -> None:
    """Let readers open another version from now on."""
    write_durably(folder / CURRENT, name + "\n")


def previous_name(folder: Path) -> str:
    """Return the version before the current one.

    Raises:
        ManifestError: there is none.
    """
    names, name = version_names(folder), current_name(folder)
    older = [n for n in names if name is not None and n < name]
    if not older:
        raise ManifestError(f"{folder} has no version before {name}; there are {names}")
    return older[-1]


def collect(folder: Path, keep: int) -> list[str]:
    """Remove all but the newest versions and the current one; return their names.

    Whatever else lies in the folder was left by builds that were interrupted, or by a
    release that had no versions, and is removed too.
    """
    name = current_name(folder)
    names = version_names(folder)
    kept = {name, *names[-keep:]}
    removed = [n for n in names if n not in kept]
    for old in removed:
        # Renamed first: a reader finds a whole version or none, never half of one.
        gone = folder / VERSIONS / f"{old}.removed"
        (folder / VERSIONS / old).rename(gone)
        shutil.rmtree(gone)
    for path in (*folder.iterdir(), *(folder / VERSIONS).iterdir()):
        if path.name in (CURRENT, VERSIONS) or path.name in kept:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return removed
