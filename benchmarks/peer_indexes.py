"""Our index, hnswlib and usearch with settings of rising effort, for index_peers.py."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.index.kinds.kind import SearchSetting, describe
from torchrec_adrec.index.sharded import ShardedIndex, set_search_threads

LINKS, FINDS = 32, 100  # of the graphs: links of an ad, finds kept while building
EFFORTS = (1, 1.5, 2, 3, 5, 8, 12, 20)  # finds kept in a search, times K
Search = Callable[[Float32s, int], Int64s]  # queries, K to rows


@dataclass(frozen=True)
class Way:
    """An index with one setting.

    Attributes:
        index: name of what it is.
        setting: for people.
        search: finds rows.
        threads: sets how many threads search.
    """

    index: str
    setting: str
    search: Search
    threads: Callable[[int], None]


def ours(name: str, vectors: Float32s, k: int, index: ShardedIndex) -> Iterator[Way]:
    """Every third number of lists, with a k_factor that suffices."""
    grid = index.kind.search_grid()
    settings: list[SearchSetting] = [{}]
    if "nprobe" in grid:
        some = [n for n in grid["nprobe"] if 4 <= n <= len(vectors) ** 0.5][::2]
        factors = [f for f in grid.get("k_factor", (0,)) if f in (0, 1.25, 2, 4)]
        settings = [{"nprobe": n, "k_factor": f} for n in some for f in factors]

    def search(setting: SearchSetting, queries: Float32s, k: int) -> Int64s:
        return index.nearest(queries, k, setting)[0]

    for setting in settings:
        shown = describe({n: v for n, v in setting.items() if v})
        yield Way(name, shown, partial(search, setting), set_search_threads)


def hnswlib_ways(vectors: Float32s, k: int, index: Any) -> Iterator[Way]:
    """Graphs of hnswlib, from K finds on."""

    def search(finds: int, queries: Float32s, k: int) -> Int64s:
        index.set_ef(finds)
        return np.asarray(index.knn_query(queries, k)[0], dtype=np.int64)

    for effort in EFFORTS:
        finds = int(effort * max(k, 50))
        name = f"ef {finds}"
        yield Way("hnswlib", name, partial(search, finds), index.set_num_threads)


def usearch_ways(vectors: Float32s, k: int, index: Any) -> Iterator[Way]:
    """Graphs of usearch, from K finds on."""
    threads = [1]

    def search(finds: int, queries: Float32s, k: int) -> Int64s:
        index.expansion_search = finds
        keys = index.search(queries, k, threads=threads[0]).keys
        return np.asarray(keys, dtype=np.int64).reshape(len(queries), -1)

    def set_threads(count: int) -> None:
        threads[0] = count

    for effort in EFFORTS:
        finds = int(effort * max(k, 50))
        yield Way("usearch", f"expansion {finds}", partial(search, finds), set_threads)


def build_hnswlib(vectors: Float32s, threads: int) -> Any:
    """Build a graph of inner products, numbered by row."""
    import hnswlib  # type: ignore

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=LINKS, ef_construction=FINDS)
    index.add_items(vectors, num_threads=threads)
    return index


def build_usearch(vectors: Float32s, threads: int) -> Any:
    """Build a graph of inner products over half floats, its fastest form here."""
    from usearch.index import Index  # type: ignore

    index = Index(
        ndim=vectors.shape[1],
        metric="ip",
        dtype="f16",
        connectivity=LINKS,
        expansion_add=FINDS,
    )
    index.add(np.arange(len(vectors)), vectors, threads=threads)
    return index
