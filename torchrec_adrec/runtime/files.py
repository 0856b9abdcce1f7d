"""Hashes of files: what is read must be what was written, down to the last byte."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from torchrec_adrec.errors import DataError, ManifestError, reason

HASHES = "hashes.json"
_HASHES = TypeAdapter(dict[str, str])


class Origin(BaseModel):
    """Names the checkpoint that something was made from.

    Attributes:
        step: optimizer steps taken.
        weights: hash of the files that hold its tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    weights: str

    def __str__(self) -> str:
        """Return how messages name it."""
        return f"step {self.step} (weights {self.weights})"


def matching(pattern: str) -> list[Path]:
    """Return the paths that a pattern matches; one without `*?[` is a plain path."""
    path = Path(pattern)
    if not any(sign in pattern for sign in "*?["):
        return [path] if path.exists() else []
    # Path.glob takes only relative patterns, so an absolute one starts at the root.
    return list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk.

    A rename may reach the disk before the bytes that were renamed: after a power cut
    there would be a file of the right name without its content.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(partial: Path, path: Path) -> None:
    """Give a whole file its name: readers find the old one or this one, never half."""
    sync(partial)
    partial.rename(path)
    sync(path.parent)


def write_durably(path: Path, text: str) -> None:
    """Replace a file by one with this text, on the disk when this returns."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    put(partial, path)


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Compare every file of a folder with its hash.

    Raises:
        ManifestError: a file is missing, cut short or changed.
    """
    for difference in differences(folder, hashes):
        raise ManifestError(f"{difference}, make it again")


def differences(folder: Path, hashes: Mapping[str, str]) -> Iterator[str]:
    """Tell of every file that has changed how it differs, in the order of `hashes`."""
    # Hashing lets other threads run, so that each processor takes a file.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = map(folder.joinpath, hashes)
        yield from filter(None, pool.map(changed, paths, hashes.values()))


def changed(path: Path, expected: str) -> str:
    """Return how a file differs from the one that was hashed; empty if it does not."""
    actual = sha256(path) if path.exists() else "no file"
    if actual == expected:
        return ""
    return (
        f"{path}: expected sha256 {expected[:12]}, found {actual[:12]}; it was damaged"
        " or changed"
    )


def write_hashes(folder: Path, paths: Iterable[Path]) -> None:
    """Write `hashes.json` for some files of a folder."""
    save_hashes(folder, {str(p.relative_to(folder)): sha256(p) for p in paths})


def save_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    """Write `hashes.json`: name of a file in the folder -> its sha256."""
    (folder / HASHES).write_text(json.dumps(hashes, indent=1) + "\n")


def check_hashes(folder: Path, prefix: str = "") -> None:
    """Check the files of `hashes.json` whose names start with `prefix`.

    Raises:
        ManifestError: one is missing or changed, or there is no `hashes.json`.
    """
    hashes = load_hashes(folder)
    check_files(folder, {n: h for n, h in hashes.items() if n.startswith(prefix)})


def vocabulary_hashes(data: Path) -> dict[str, str]:
    """Return feature -> hash of its vocabulary, of a prepared data set."""
    # A vocabulary that was fitted on other rows gives the same ids other meanings.
    hashes = load_hashes(data)
    names = (name for name in hashes if name.startswith("vocabulary/"))
    return {Path(name).stem: hashes[name] for name in names}


def catalog_hash(data: Path) -> str:
    """Return the hash of the catalog, which counts the training rows of every ad."""
    return load_hashes(data)["catalog.parquet"]


def load_hashes(folder: Path) -> dict[str, str]:
    """Read `hashes.json`.

    Raises:
        ManifestError: there is none, or it is damaged.
    """
    path = folder / HASHES
    try:
        hashes = _HASHES.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {reason(error)}") from None
    if not hashes:  # then every file would count as unchanged
        raise ManifestError(f"{path} names no file: it was emptied, make it again")
    return hashes


def read_json(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {reason(error)}") from None
