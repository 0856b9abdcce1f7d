"""Exported vectors to the files of an index, by all ranks; nobody holds all vectors.

1. Every rank picks its own ads out of the sample that the index learns from.
2. The first rank trains and writes the index without vectors.
3. Every rank adds its own ads to that one and writes it: a piece.
4. Inverted lists are cut anew: every rank takes some lists out of all the pieces.

Vectors are added part by part of the export, always in the same order. So the files do
not depend on the number of ranks, and the index that they join to does not depend on
the number of files either.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.index.device import Gpus
from torchrec_adrec.index.device_build import assigner, trainer_on
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.index.kinds.kind import IndexKind
from torchrec_adrec.index.manifest import IDS, Layout, shard_name
from torchrec_adrec.index.pieces import (
    add,
    can_be_joined,
    cut,
    even_cuts,
    list_sizes,
    open_mapped,
)
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import Ranks

EMPTY = "empty.faiss"


def build_files(
    kind: IndexKind,
    embeddings: Embeddings,
    shards: int,
    seed: int,
    ranks: Ranks,
    out: Path,
    gpus: Gpus | None = None,
) -> Layout:
    """Write the files of an index. Collective; returns what each file holds.

    Args:
        kind: with its sizes.
        embeddings: what was exported.
        shards: number of files. With fewer than ranks, some ranks have nothing to do.
        seed: of the sample and of the training.
        ranks: the processes that share the work.
        out: an existing folder that all of them see.
        gpus: to train and assign on; None: the CPU.
    """
    embeddings.check(embeddings.share(ranks.rank, ranks.world_size))
    _write_sample(kind, embeddings, seed, ranks, out)
    ranks.barrier()
    if ranks.is_first:
        _train(kind, embeddings.manifest.dim, seed, out, gpus)
        np.save(out / IDS, embeddings.ids())
    ranks.barrier()  # every rank starts its pieces from that file
    numbers = range(ranks.rank, shards, ranks.world_size)
    for number in numbers:
        parts = embeddings.share(number, shards)
        _write_piece(embeddings, parts, out, number, ranks.rank, gpus)
    ranks.barrier()
    layout = _layout(embeddings, shards, out)
    ranks.barrier()  # every rank has looked at the pieces of all
    if layout.lists:
        cut_files(out, out, layout, layout, numbers, piece_name)
        ranks.barrier()  # the pieces are read by all
        for number in numbers:
            (out / piece_name(number)).unlink()
    else:
        for number in numbers:
            (out / piece_name(number)).rename(out / shard_name(number))
    ranks.barrier()
    if ranks.is_first:
        (out / EMPTY).unlink()
    return layout


def cut_files(
    folder: Path,
    out: Path,
    old: Layout,
    new: Layout,
    numbers: range,
    name: Callable[[int], str] = shard_name,
) -> None:
    """Write some files of another layout than those that are there.

    Args:
        folder: of the files that are there.
        out: holds the empty index, and gets the new files.
        old, new: both layouts.
        numbers: of the files to write.
        name: of a file that is there, by its number.
    """
    sources = [open_mapped(folder / name(n)) for n in range(len(old.names))]
    for number in numbers:
        shard = faiss.read_index(str(out / EMPTY))
        cut(sources, old, shard, new, number)
        faiss.write_index(shard, str(out / shard_name(number)))


def piece_name(number: int) -> str:
    """Return the name of the file that holds one share of the ads."""
    return f"piece-{number:05d}.faiss"


def sample_rows(kind: IndexKind, count: int, seed: int) -> Int64s:
    """Draw the numbers of the ads that the index learns from, rising."""
    size = min(count, kind.training_rows)
    return np.sort(np.random.default_rng(seed).choice(count, size, replace=False))


def _write_sample(
    kind: IndexKind, embeddings: Embeddings, seed: int, ranks: Ranks, out: Path
) -> None:
    rows = sample_rows(kind, embeddings.count, seed)
    picked = [np.empty((0, embeddings.manifest.dim), dtype=np.float32)]
    if len(rows):
        for numbers, _, vectors in embeddings.read(
            embeddings.share(ranks.rank, ranks.world_size)
        ):
            picked.append(vectors[np.isin(numbers, rows, assume_unique=True)])
    np.save(out / _sample_name(ranks.rank), np.concatenate(picked))


def _sample_name(rank: int) -> str:
    return f"sample-{rank:05d}.npy"


def _train(kind: IndexKind, dim: int, seed: int, out: Path, gpus: Gpus | None) -> None:
    # In the order of the ranks, which is that of the ids: how many there are does not
    # change what the index learns.
    paths = sorted(out.glob("sample-*.npy"))
    sample: Float32s = np.concatenate([np.load(path) for path in paths])
    assert sample.shape[1] == dim
    for path in paths:
        path.unlink()
    index = kind.create(sample, seed, trainer_on(gpus))
    faiss.write_index(index, str(out / EMPTY))


def _write_piece(
    embeddings: Embeddings,
    parts: range,
    out: Path,
    number: int,
    rank: int,
    gpus: Gpus | None,
) -> None:
    piece = faiss.read_index(str(out / EMPTY))
    assign = assigner(piece, gpus, rank)
    total = int(embeddings.starts[parts.stop] - embeddings.starts[parts.start])
    with Progress(f"indexing, piece {number}", total, "ads") as progress:
        for numbers, _, vectors in embeddings.read(parts):
            add(piece, vectors, numbers, assign)
            progress.advance(len(numbers))
    faiss.write_index(piece, str(out / piece_name(number)))


def _layout(embeddings: Embeddings, shards: int, out: Path) -> Layout:
    starts = embeddings.starts
    firsts = [starts[embeddings.share(n, shards).start] for n in range(shards)]
    pieces: list[Any] = [open_mapped(out / piece_name(n)) for n in range(shards)]
    return Layout(
        rows=tuple(map(int, (*firsts, starts[-1]))),
        lists=even_cuts(list_sizes(pieces), shards),
    )


def reshard(folder: Path, old: Layout, shards: int, ranks: Ranks, out: Path) -> Layout:
    """Write the files of an index anew, as another number of them. Collective.

    Nothing is trained, assigned or encoded again: the files join to the same index.

    Args:
        folder: of the files that are there.
        old: their layout.
        shards: number of files to write.
        ranks: the processes that share the work.
        out: an existing folder that all of them see.

    Raises:
        ConfigError: the kind is neither lists nor a table of codes.
    """
    if not can_be_joined(open_mapped(folder / shard_name(0))):
        raise ConfigError(
            f"{folder} holds graphs, which cannot be cut into other shards; run `adrec"
            " index` with another index.shards"
        )
    if ranks.is_first:
        empty = faiss.read_index(str(folder / shard_name(0)))
        empty.reset()
        faiss.write_index(empty, str(out / EMPTY))
        shutil.copy(folder / IDS, out / IDS)
    sources = [open_mapped(folder / name) for name in old.names]
    count = old.rows[-1]
    new = Layout(
        rows=tuple(number * count // shards for number in range(shards + 1)),
        lists=even_cuts(list_sizes(sources), shards),
    )
    ranks.barrier()
    cut_files(folder, out, old, new, range(ranks.rank, shards, ranks.world_size))
    ranks.barrier()
    if ranks.is_first:
        (out / EMPTY).unlink()
    return new
