"""Our index, hnswlib and usearch at equal recall in one run; and what shards cost.

    python benchmarks/index_peers.py                   # 1M x 256, the size to report
    python benchmarks/index_peers.py --rows 200000     # half an hour on two cores
    python benchmarks/index_peers.py --rows 20000 --dim 64 --kinds exact ivf_sqfp16

At 1M x 256 the graphs alone take about 25 minutes to build on two cores, the whole run
about an hour. hnswlib and usearch, which needs numkong, must be importable.

Every index is searched with settings of rising effort, for each K: recall of users
against brute force, time of single queries on one thread, queries/s of a batch on two.
A row is on the front if none is both faster and at least as good. At equal recall: the
fastest setting of each that reaches a target. Shards: the same ads in one file and in
four, opened as one index; answers are compared, times are taken in turn.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from index_build import write_export
from index_vectors import falling_clusters, interleaved_microseconds, print_table
from peer_indexes import (
    Way,
    build_hnswlib,
    build_usearch,
    hnswlib_ways,
    ours,
    usearch_ways,
)
from timing import RESULTS, interleave, keep_result, ratio

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.index.build import build_files
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.index.kinds import derive_kind
from torchrec_adrec.index.kinds.kind import SearchSetting
from torchrec_adrec.index.sharded import ShardedIndex, set_search_threads
from torchrec_adrec.runtime.ranks import SingleProcess

TARGETS = (0.9, 0.95, 0.99)
BATCH_THREADS = 2


def main() -> None:
    """Build all, search all, keep and draw."""
    args = _arguments()
    vectors = falling_clusters(args.rows, args.dim, 1)
    users = falling_clusters(args.users, args.dim, 2)
    top = _exact(vectors, users, max(args.k))
    rows, equal = [], []
    build_s, families = _families(args, vectors)
    for k in args.k:
        ways = [way for family in families for way in family(vectors, k)]
        best = _all_measured(ways, users, top[:, :k], k, args)
        rows += best
        equal += _at_equal_recall(best, k)
    shown = ("k", "index", "setting", "recall", "p50", "batch_per_s")
    print_table([row for row in rows if row["front"]], shown)
    print_table(equal, ("k", "target", "index", "setting", "p50", "times_as_fast"))
    shards = [_sharded(kind, args) for kind in args.kinds]
    keep_result(
        "index_peers",
        {**vars(args), "build_s": build_s, "equal": equal, "shards": shards}
        | {"rows_measured": rows},
    )
    _draw(rows, args, RESULTS / "index_peers.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--timed", type=int, default=50, help="single queries")
    parser.add_argument("--threads", type=int, default=2, help="while building")
    parser.add_argument("--rounds", type=int, default=5, help="of the shards' times")
    parser.add_argument(
        "--kinds", nargs="+", default=["ivf_sqfp16", "pca_ivf_sq8_refined"]
    )
    parser.add_argument("--peers", nargs="*", default=["hnswlib", "usearch"])
    return parser.parse_args()


def _exact(vectors: Float32s, users: Float32s, k: int) -> Int64s:
    """Rows of the best ads by brute force, best first, (B, k)."""
    best = []
    for user in users:
        scores = vectors @ user
        some = np.argpartition(-scores, k)[:k]
        best.append(some[np.argsort(-scores[some])])
    return np.stack(best)


def _families(
    args: argparse.Namespace, vectors: Float32s
) -> tuple[dict[str, float], list[Callable[[Float32s, int], Iterator[Way]]]]:
    """Build every index once; returns seconds, and what lists its settings for a K."""
    families: list[Callable[[Float32s, int], Iterator[Way]]] = []
    seconds = {}
    set_search_threads(args.threads)
    for name in args.kinds:
        began = time.perf_counter()
        kind = derive_kind(name, {}, args.rows, args.dim)
        index = ShardedIndex.of_vectors(kind, np.arange(args.rows), vectors)
        seconds[name] = round(time.perf_counter() - began, 1)
        families.append(partial(ours, name, index=index))
    peers: dict[str, tuple[Any, Any]] = {
        "hnswlib": (build_hnswlib, hnswlib_ways),
        "usearch": (build_usearch, usearch_ways),
    }
    for name in args.peers:
        began = time.perf_counter()
        graph = peers[name][0](vectors, args.threads)
        seconds[name] = round(time.perf_counter() - began, 1)
        families.append(partial(peers[name][1], index=graph))
    print(f"built in seconds: {seconds}", flush=True)
    return seconds, families


def _all_measured(
    ways: list[Way], users: Float32s, top: Int64s, k: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Recall, single queries in turn on one thread, and a batch on two."""
    rows: list[dict[str, Any]] = []
    for way in ways:
        way.threads(1)
        answers = way.search(users, k)
        hits = [np.isin(a, b).mean() for a, b in zip(top, answers, strict=True)]
        rows.append({"k": k, "index": way.index, "setting": way.setting})
        rows[-1]["recall"] = round(float(np.mean(hits)), 4)
    names = [str(number) for number in range(len(ways))]
    singles: dict[str, Callable[[int], Any]] = {
        name: partial(_search_one, way, users, k)
        for name, way in zip(names, ways, strict=True)
    }
    times = interleaved_microseconds(singles, min(args.timed, len(users)))
    for name, way, row in zip(names, ways, rows, strict=True):
        way.threads(BATCH_THREADS)
        batches = interleave({name: partial(way.search, users, k)}, 3)
        row |= times[name]
        row["batch_per_s"] = round(len(users) / median(batches[name]))
    for row in rows:
        row["front"] = not any(
            other["recall"] >= row["recall"] and other["p50"] < row["p50"]
            for other in rows
        )
    return rows


def _search_one(way: Way, users: Float32s, k: int, number: int) -> None:
    way.search(users[number : number + 1], k)


def _at_equal_recall(rows: list[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    """The fastest setting of each index that reaches each target."""
    table = []
    for target in TARGETS:
        fastest: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["recall"] >= target:
                best = fastest.setdefault(row["index"], row)
                if row["p50"] < best["p50"]:
                    fastest[row["index"]] = row
        graph = fastest.get("hnswlib")
        for row in fastest.values():
            speed = round(graph["p50"] / row["p50"], 2) if graph else None
            table.append({"target": target, "times_as_fast": speed, **row})
    return table


def _sharded(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Search the same ads in one file and in four."""
    kind, k = derive_kind(name, {}, args.rows, args.dim), max(args.k)
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "export"
        write_export(export, args.rows, args.dim)
        indexes = {}
        for shards in (1, 4):
            out = Path(folder) / str(shards)
            out.mkdir()
            embeddings = Embeddings.open(export)
            layout = build_files(kind, embeddings, shards, 0, SingleProcess(), out)
            indexes[shards] = ShardedIndex.open(out, layout, kind)
        setting: SearchSetting = {"nprobe": 64, "k_factor": 2}
        set_search_threads(1)
        users = next(iter(embeddings.read(range(1))))[2][: args.users]
        answers = [index.nearest(users, k, setting) for index in indexes.values()]
        scores_equal = bool(np.array_equal(answers[0][1], answers[1][1]))

        def search(index: ShardedIndex) -> None:
            for row in range(len(users)):
                index.nearest(users[row : row + 1], k, setting)

        ways: dict[str, Callable[[], Any]] = {
            str(n): partial(search, index) for n, index in indexes.items()
        }
        seconds = interleave(ways, args.rounds)
    row = {
        "kind": name,
        "four_over_one": round(ratio(seconds, "4", "1"), 3),
        "same_scores": scores_equal,
        "same_ids": float((answers[0][0] == answers[1][0]).mean()),
        "seconds": seconds,
    }
    print({key: row[key] for key in row if key != "seconds"}, flush=True)
    return row


def _draw(rows: list[dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """One panel a K: recall against time, the front of each index."""
    _, panels = plt.subplots(1, len(args.k), figsize=(5 * len(args.k), 4))
    for panel, k in zip(np.atleast_1d(panels), args.k, strict=True):
        for name in dict.fromkeys(row["index"] for row in rows):
            some = [row for row in rows if row["k"] == k and row["index"] == name]
            some = [
                row
                for row in some
                if not any(
                    o["recall"] >= row["recall"] and o["p50"] < row["p50"] for o in some
                )
            ]
            some.sort(key=lambda row: row["recall"])
            recalls = [row["recall"] for row in some]
            panel.plot(recalls, [row["p50"] for row in some], marker=".", label=name)
        panel.set(title=f"K = {k}", xlabel="recall", yscale="log", xlim=(0.8, 1.002))
    np.atleast_1d(panels)[0].set_ylabel("microseconds a query, one thread")
    np.atleast_1d(panels)[-1].legend()
    plt.suptitle(f"{args.rows:,} x {args.dim}")
    plt.tight_layout()
    plt.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
