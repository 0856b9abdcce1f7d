"""A bundle: what serving reads of a run and nothing else, under one manifest.

It has the names and places of a run, so whoever opens a run opens a bundle:

    manifest.json                 size and sha256 of every other file
    data/ retrieval/ export/ index/ ranking/ certificate.json config.yaml

It is a folder, or a tar file of one.
"""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from torchrec_adrec.errors import ConfigError, ManifestError, reason
from torchrec_adrec.index.changes import CHANGES, ChangesManifest
from torchrec_adrec.index.manifest import (
    EXAMPLES,
    MANIFEST,
    EmbeddingManifest,
    IndexManifest,
)
from torchrec_adrec.runs.stages import (
    CONFIG,
    DATA,
    EXPORT,
    INDEX,
    RANKING,
    RECORD,
    RETRIEVAL,
    load_record,
    stage_folder,
)
from torchrec_adrec.runs.unpack import AGAIN, BUNDLE, TAR
from torchrec_adrec.runs.versions import CURRENT, VERSIONS, current_name
from torchrec_adrec.runtime.files import HASHES, differences, load_hashes, put, sync
from torchrec_adrec.tasks.sharded import METRICS, final_checkpoint

CERTIFICATE = "certificate.json"
EXAMPLE_USERS = "data/example_users.json"

# Adds a file of a name, a size and a content to a bundle that is being written.
Add = Callable[[str, int, Any], None]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Frozen):
    """What a file of a bundle must be, its size in bytes."""

    size: int
    sha256: str


class BundleManifest(_Frozen):
    """Names every file of a bundle but itself."""

    files: Annotated[dict[str, File], Field(min_length=1)]

    @property
    def text(self) -> str:
        """The manifest as it is written, to the byte."""
        return self.model_dump_json(indent=1) + "\n"


def check_bundle(folder: Path) -> None:
    """Compare every file of a bundle with the manifest; a run has none to compare with.

    Raises:
        ManifestError: names a file that is missing, was added, or is not what it was.
    """
    path = folder / BUNDLE
    if not path.exists():
        return
    try:
        text = path.read_text()
        manifest = BundleManifest.model_validate_json(text)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: {reason(error)}; {AGAIN}") from None
    # Nothing hashes the manifest itself: no byte of it may be free to change.
    if text != manifest.text:
        raise ManifestError(f"{path} was changed since it was written; {AGAIN}")
    existing = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir()
    } - {BUNDLE}
    for name in sorted(existing ^ manifest.files.keys()):
        fault = "was added to the bundle" if name in existing else "is missing"
        raise ManifestError(f"{folder / name} {fault}; {AGAIN}")
    hashes = {name: file.sha256 for name, file in manifest.files.items()}
    for difference in differences(folder, hashes):
        raise ManifestError(f"{difference}; {AGAIN}")


def pack(run: Path, target: Path) -> BundleManifest:
    """Write the bundle of a run that was just opened, and so proved.

    Args:
        run: its folder, which nobody may change meanwhile.
        target: a folder, or a file that ends in `.tar`; it appears when it is whole.

    Raises:
        ConfigError: there is something of that name, or no place for it.
        ManifestError, CheckpointError: the run has no finished stage of some kind.
    """
    check_target(target)
    partial_target = target.with_name(f".{target.name}.partial")
    remove(partial_target)
    try:
        if target.suffix == TAR:
            with tarfile.open(partial_target, "w") as tar:
                manifest = _write(run, partial(_add_to_tar, tar))
            check_target(target)
            put(partial_target, target)
            return manifest
        partial_target.mkdir()
        manifest = _write(run, partial(_add_to_folder, partial_target))
        for path in (*partial_target.rglob("*"), partial_target):
            sync(path)
        check_target(target)
        partial_target.rename(target)
        sync(target.absolute().parent)
        return manifest
    finally:
        remove(partial_target)


def check_target(target: Path) -> None:
    """Refuse a place where a bundle cannot be put.

    Raises:
        ConfigError: there is something of that name, or no folder to put it in.
    """
    if target.exists() or target.is_symlink():
        raise ConfigError(f"--to {target} exists already; name another one")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"--to {target}: expected a name in a folder that is there")


def remove(path: Path) -> None:
    """Remove what an interrupted command has left, a folder or a file."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def served_files(run: Path) -> list[str]:
    """Name every file that serving reads, by its place in the run.

    The tensors of optimizers are among them, because the files of a checkpoint have
    one hash together, and so are the exported vectors, with which serving compares.

    Raises:
        ManifestError, CheckpointError: the run has no finished stage of some kind.
    """
    data, export = run / DATA.name, run / EXPORT.name
    version = stage_folder(run, INDEX.name)
    paths = [data / name for name in (RECORD, HASHES, *load_hashes(data))]
    paths += [run / EXAMPLE_USERS]
    embeddings = EmbeddingManifest.load(export)
    paths += [export / n for n in (RECORD, MANIFEST, EXAMPLES, *embeddings.parts)]
    files = IndexManifest.load(version).files
    paths += [version / name for name in (RECORD, CONFIG, MANIFEST, *files)]
    for folder in (run / RETRIEVAL.name, run / RANKING.name):
        checkpoint = final_checkpoint(folder)
        paths += [folder / name for name in (RECORD, CONFIG, METRICS)]
        paths += [checkpoint.path / name for name in (HASHES, *checkpoint.hashes)]
    changes = run / CHANGES
    if name := current_name(changes):
        manifest = ChangesManifest.load(changes / VERSIONS / name)
        paths += [changes / VERSIONS / name / n for n in (MANIFEST, *manifest.files)]
        paths.append(changes / CURRENT)
    optional = (run / INDEX.name / CURRENT, run / CONFIG, run / CERTIFICATE)
    paths += [path for path in optional if path.exists()]
    return sorted(path.relative_to(run).as_posix() for path in paths)


def _write(run: Path, add: Add) -> BundleManifest:
    """Add all files, and the manifest of the very bytes that were added."""
    record = f"{DATA.name}/{RECORD}"
    files: dict[str, File] = {}

    def add_hashed(name: str, size: int, content: IO[bytes]) -> None:
        hashed = _Hashed(content)
        add(name, size, hashed)
        files[name] = File(size=size, sha256=hashed.digest.hexdigest())

    for name in served_files(run):
        if name == record:
            # It names raw files by paths of this machine, which serving never reads.
            whole = load_record(run, DATA.name).model_copy(update={"raw": {}})
            content = (whole.model_dump_json() + "\n").encode()
            add_hashed(name, len(content), io.BytesIO(content))
            continue
        with (run / name).open("rb") as file:
            add_hashed(name, os.fstat(file.fileno()).st_size, file)
    manifest = BundleManifest(files=files)
    content = manifest.text.encode()
    add(BUNDLE, len(content), io.BytesIO(content))
    return manifest


class _Hashed:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        """Read some bytes."""
        content = self.file.read(count)
        self.digest.update(content)
        return content


def _add_to_tar(tar: tarfile.TarFile, name: str, size: int, content: Any) -> None:
    # No owner and no time: the same run makes the same bytes on every machine.
    entry = tarfile.TarInfo(name)
    entry.size = size
    tar.addfile(entry, content)


def _add_to_folder(folder: Path, name: str, size: int, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)
