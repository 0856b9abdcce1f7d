"""sha256 of every file of a checkpoint: taken when it is written, compared when read.

Ranks share the work: each hashes what it has just written, which is still in memory,
and when reading its share of the files.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.runtime.files import HASHES, changed, sha256


def hash_files(folder: Path, process: Process) -> dict[str, str]:
    """Name -> sha256 of every file in a folder to which all ranks wrote. Collective."""
    own = {path.name: sha256(path) for path in folder.glob(f"__{process.rank}_*")}
    known = {name: h for found in _from_all(own) for name, h in found.items()}
    if not process.is_first:
        return known
    return {
        path.name: known.get(path.name) or sha256(path)
        for path in sorted(folder.iterdir())
    }


def check_file(path: Path, hashes: Mapping[str, str]) -> None:
    """One file is as it was written.

    Raises:
        CheckpointError: names the file.
    """
    difference = changed(path, hashes.get(path.name, "none"))
    if difference:
        raise _damaged(difference, path.parent)


def check_files(folder: Path, hashes: Mapping[str, str], alone: bool = False) -> None:
    """All files are as they were written. Collective, unless `alone`.

    Raises:
        CheckpointError: on every rank, naming a file that is missing or changed, or
            that nobody wrote.
    """
    together = dist.is_initialized() and not alone
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    there = {path.name for path in folder.iterdir()} - {HASHES}
    names = sorted(there | hashes.keys())[rank::ranks]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets other threads run
        expected = [hashes.get(name, "none") for name in names]
        own = list(pool.map(changed, [folder / name for name in names], expected))
    found = _from_all(own) if together else [own]
    for difference in (text for texts in found for text in texts if text):
        raise _damaged(difference, folder)


def _damaged(difference: str, folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{difference}. Restore the file, or remove {folder}: training then goes on"
        " from the checkpoint before it"
    )


def _from_all(own: Any) -> list[Any]:
    found: list[Any] = [own] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
