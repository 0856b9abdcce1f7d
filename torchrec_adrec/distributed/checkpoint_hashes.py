"""Hashes every file of a checkpoint when it is written, and compares when it is read.

Ranks share the work: each hashes what it has just written, which is still in memory,
and of the files to be read its share.
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
    """Hash every file in a folder to which all ranks wrote. Collective.

    Returns:
        Name -> sha256; on the first rank of all files, on others of the tensors.
    """
    written = {path.name: sha256(path) for path in folder.glob(f"__{process.rank}_*")}
    by_rank = _gather(written)
    hashes = {name: digest for part in by_rank for name, digest in part.items()}
    if not process.is_first:
        return hashes
    return {
        path.name: hashes.get(path.name) or sha256(path)
        for path in sorted(folder.iterdir())
    }


def check_file(path: Path, hashes: Mapping[str, str]) -> None:
    """Check that one file is as it was written.

    Raises:
        CheckpointError: names the file.
    """
    difference = changed(path, hashes.get(path.name, "none"))
    if difference:
        raise _damage_error(difference, path.parent)


def check_files(folder: Path, hashes: Mapping[str, str], alone: bool = False) -> None:
    """Check that all files are as they were written. Collective, unless `alone`.

    Args:
        folder: of the checkpoint.
        hashes: name -> sha256, as recorded.
        alone: check all files here; other ranks need not call it.

    Raises:
        CheckpointError: on every rank, naming a file that is missing or changed, or
            that nobody wrote.
    """
    is_shared = dist.is_initialized() and not alone
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if is_shared else (0, 1)
    existing = {path.name for path in folder.iterdir()} - {HASHES}
    names = sorted(existing | hashes.keys())[rank::ranks]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets other threads run
        expected = [hashes.get(name, "none") for name in names]
        local = list(pool.map(changed, [folder / name for name in names], expected))
    # Every rank raises for the first damage that any rank has seen: one that raised
    # alone would leave the others waiting.
    by_rank = _gather(local) if is_shared else [local]
    for difference in (text for texts in by_rank for text in texts if text):
        raise _damage_error(difference, folder)


def _damage_error(difference: str, folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{difference}. Restore the file, or remove {folder}: training then goes on"
        " from the checkpoint before it"
    )


def _gather(local: Any) -> list[Any]:
    by_rank: list[Any] = [local] * dist.get_world_size()
    dist.all_gather_object(by_rank, local)
    return by_rank
