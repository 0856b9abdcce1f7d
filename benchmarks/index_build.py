"""Memory of each rank while an index is built, and whether the ranks change the index.

Writes vectors of its own in the form of an export (clusters, 256 wide) and builds the
inverted lists over them on 1, 2 and 4 ranks. Anonymous memory is what a rank holds;
pages of mapped files come and go with the system's need.

python benchmarks/index_build.py [--ads 1000000] [--small 250000] [--dim 256]
    [--ranks 1 2 4]
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from timing import keep_result

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.export.parts import Parts
from torchrec_adrec.index.build import build_files
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.index.kinds.ivf import IvfFlat
from torchrec_adrec.index.manifest import EmbeddingManifest
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runtime.files import Origin, sha256

CENTRES, QUERIES, K, NPROBE = 4096, 200, 100, 16
EVERY_S = 0.02  # between two looks at a rank's memory


@dataclass(frozen=True)
class BarrierRank:
    """One of several processes of this machine."""

    rank: int
    world_size: int
    meeting: Any

    @property
    def is_first(self) -> bool:
        """Whether this rank trains."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.meeting.wait()


def clusters(rows: int, dim: int, seed: int) -> Float32s:
    """Draw vectors of length 1 near some of the centres, (rows, dim)."""
    centres = np.random.default_rng(0).normal(size=(CENTRES, dim))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(CENTRES, size=rows)].astype(np.float32)
    vectors += rng.normal(scale=0.7, size=(rows, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def write_export(folder: Path, ads: int, dim: int) -> None:
    """Write vectors as `adrec export` does, a part at a time."""
    folder.mkdir()
    parts = Parts(folder, np.arange(ads) * 7 + 2**62, "fp32", {})
    rows: dict[str, int] = {}
    for number in range(parts.count):
        some = parts.slice_of(number)
        parts.write(number, clusters(some.stop - some.start, dim, number + 1))
        rows[parts.path(number).name] = some.stop - some.start
    EmbeddingManifest(
        checkpoint=Origin(step=0, weights="0"),
        lookups="fp32",
        schema_fingerprint="0",
        similarity="cosine",
        dim=dim,
        count=ads,
        parts=rows,
        files={name: sha256(folder / name) for name in rows},
    ).save(folder)


@contextmanager
def watched_memory() -> Iterator[dict[str, int]]:
    """Yield the largest anonymous and the largest resident memory meanwhile, MiB."""
    peak, over = {"anonymous": 0, "resident": 0}, threading.Event()

    def look() -> None:
        names = {"RssAnon": "anonymous", "VmRSS": "resident"}
        while not over.wait(EVERY_S):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, text = line.partition(":")
                if name in names:
                    used = int(text.split()[0]) >> 10
                    peak[names[name]] = max(peak[names[name]], used)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def build_as_rank(
    rank: BarrierRank, export: Path, nlist: int, out: Path, results: Any
) -> None:
    """Build as one of the ranks, and tell what it took."""
    faiss.omp_set_num_threads(1)
    began = time.perf_counter()
    with watched_memory() as peak:
        before = dict(peak)
        time.sleep(3 * EVERY_S)
        before = dict(peak)
        layout = build_files(
            IvfFlat(nlist), Embeddings.open(export), rank.world_size, 0, rank, out
        )
    seconds = time.perf_counter() - began
    results.put((rank.rank, before, peak, seconds, layout))


def build(export: Path, ranks: int, nlist: int, out: Path) -> dict[str, Any]:
    """Build on some ranks; returns the figures, with the index that came out."""
    out.mkdir()
    context = get_context("spawn")
    meeting, results = context.Barrier(ranks), context.Queue()
    processes = [
        context.Process(
            target=build_as_rank,
            args=(BarrierRank(number, ranks, meeting), export, nlist, out, results),
        )
        for number in range(ranks)
    ]
    for process in processes:
        process.start()
    answers = sorted((results.get() for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join()
    index = ShardedIndex.open(out, answers[0][4], IvfFlat(nlist))
    index.setting = {"nprobe": NPROBE}
    return {
        "index": index,
        "anonymous_MiB": [a[2]["anonymous"] - a[1]["anonymous"] for a in answers],
        "resident_MiB": [a[2]["resident"] for a in answers],
        "seconds": max(a[3] for a in answers),
    }


def main() -> None:
    """Print a line for every size and number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ads", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=250_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--nlist", type=int, default=256)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    queries = clusters(QUERIES, args.dim, 0)
    with tempfile.TemporaryDirectory() as folder:
        for ads in (args.small, args.ads):
            export = Path(folder) / f"export-{ads}"
            write_export(export, ads, args.dim)
            expected = None
            for ranks in args.ranks:
                out = Path(folder) / f"index-{ads}-{ranks}"
                figures = build(export, ranks, args.nlist, out)
                answer = figures.pop("index").search(queries, K)
                expected = expected or answer
                pairs = zip(answer, expected, strict=True)
                same = all(np.array_equal(one, other) for one, other in pairs)
                share = ads * args.dim * 4 // ranks >> 20
                rows.append(
                    {"ads": ads, "ranks": ranks, "own_vectors_MiB": share}
                    | figures
                    | {"same_as_the_first": same}
                )
                print(rows[-1], flush=True)
    keep_result("index_build", {"dim": args.dim, "nlist": args.nlist, "builds": rows})


if __name__ == "__main__":
    main()
