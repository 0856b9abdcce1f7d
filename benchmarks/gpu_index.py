"""The index on a GPU: build, sharded copy, recall, time, filters, two threads at once.

    python benchmarks/gpu_index.py                  # 1M x 256, a card, under 3 minutes
    python benchmarks/gpu_index.py --device cpu     # 20,000 x 64, so that it cannot rot

For every kind that can go to a card: seconds of k-means and of adding, with cards and
by the CPU; the bytes that were estimated and taken; milliseconds of batches of 1, 32
and 1,024 users on both; recall; the largest difference of a score. A search with a
filter is given to FAISS's own GPU index, to count the ads it returns against the
filter, and to ours, which must return none. Two threads search at once.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import faiss
import numpy as np
from index_vectors import falling_clusters
from timing import interleave, keep_result

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.config.index import IndexDevice
from torchrec_adrec.index.device import Gpus, bytes_on_each, find_gpus, place
from torchrec_adrec.index.device_build import assigner, trainer_on
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.kinds import derive_kind
from torchrec_adrec.index.kinds.kind import IndexKind, SearchSetting, most_thorough
from torchrec_adrec.index.manifest import Layout
from torchrec_adrec.index.pieces import add
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.shards import Shard

KINDS = ("exact", "ivf_flat", "ivf_sqfp16", "ivf_sq8")
BATCHES, NPROBES = (1, 32, 1024), (48, 192)


def main() -> None:
    """Measure every kind; keep the figures of a card apart from those of a CPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "gpu"])
    parser.add_argument("--rows", type=int, help="1,000,000; 20,000 on a CPU")
    parser.add_argument("--dim", type=int, help="256; 64 on a CPU")
    parser.add_argument("--k", type=int, default=500)
    parser.add_argument("--nlist", type=int, help="4,096; 128 on a CPU")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    args = parser.parse_args()
    gpus = find_gpus(args.device)
    rows = args.rows or (1_000_000 if gpus else 20_000)
    dim, nlist = (
        args.dim or (256 if gpus else 64),
        args.nlist or (4096 if gpus else 128),
    )
    vectors = falling_clusters(rows, dim, 1)
    exported = Exported.by_id(np.arange(rows) * 3 + 2**61, vectors)
    users = falling_clusters(max(BATCHES), dim, 2)
    figures: dict[str, Any] = {"rows": rows, "dim": dim, "k": args.k}
    figures |= {"faiss": faiss.__version__, "options": faiss.get_compile_options()}
    figures["cards"] = _cards(gpus)
    top = exported.exact_top(users[:200], args.k)
    for name in args.kinds:
        build = {} if name == "exact" else {"nlist": nlist}
        kind = derive_kind(name, build, rows, dim)
        began = time.perf_counter()
        row = _built_and_searched(kind, exported, users, args.k, gpus, args.device, top)
        row["seconds"] = round(time.perf_counter() - began, 1)
        figures[name] = row
        print(name, row, flush=True)
    keep_result("gpu_index" if gpus else "gpu_index_cpu", figures)


def _cards(gpus: Gpus | None) -> list[str]:
    if gpus is None:
        return []
    import torch

    return [torch.cuda.get_device_name(card) for card in range(gpus.count)]


def _built_and_searched(
    kind: IndexKind,
    exported: Exported,
    users: Float32s,
    k: int,
    gpus: Gpus | None,
    device: IndexDevice,
    top: Any,
) -> dict[str, Any]:
    row: dict[str, Any] = {"cpu_build": _build(kind, exported, None)[1]}
    index, row["build"] = _build(kind, exported, gpus)
    free = _free(gpus)
    place(index, device, k, tuned=False)
    if gpus is not None:
        count, dim = index.count, index.shards[0].index.d
        row["estimated_bytes"] = bytes_on_each(kind, count, dim, gpus.count)
        row["bytes"] = [a - b for a, b in zip(free, _free(gpus), strict=True)]
    grid = kind.search_grid()
    settings: list[SearchSetting] = [{"nprobe": n} for n in NPROBES] if grid else [{}]
    row["searches"] = [
        _searched(index, users, k, one, exported, top) for one in settings
    ]
    row["filter"] = _filter_probe(index, users[:64], k)
    row["threads_agree"] = _two_threads(index, users, k, settings)
    return row


def _build(
    kind: IndexKind, exported: Exported, gpus: Gpus | None
) -> tuple[ShardedIndex, dict[str, float]]:
    """Train and add, as the first rank does."""
    rng, count = np.random.default_rng(0), len(exported)
    picked = rng.choice(count, min(kind.training_rows, count), replace=False)
    began = time.perf_counter()
    index = kind.create(exported.vectors[np.sort(picked)], 0, trainer_on(gpus))
    trained = time.perf_counter()
    assign = assigner(index, gpus, 0)
    numbers = np.arange(count)
    for first in range(0, count, 32_768):
        part = slice(first, first + 32_768)
        add(index, exported.vectors[part], numbers[part], assign)
    seconds = {"train_s": trained - began, "add_s": time.perf_counter() - trained}
    shard, layout = Shard(index, exported.ids), Layout(rows=(0, count))
    return ShardedIndex([shard], layout, kind, most_thorough(kind)), seconds


def _free(gpus: Gpus | None) -> list[int]:
    if gpus is None:
        return []
    import torch

    return [int(torch.cuda.mem_get_info(card)[0]) for card in range(gpus.count)]


def _searched(
    index: ShardedIndex,
    users: Float32s,
    k: int,
    setting: SearchSetting,
    exported: Exported,
    top: Any,
) -> dict[str, Any]:
    """Recall and milliseconds, where the index is and on the CPU."""
    (shard,) = index.shards
    plain = ShardedIndex(
        [Shard(shard.index, shard.ids)], index.layout, index.kind, setting
    )
    ids, scores = index.nearest(users[:200], k, setting)
    _, expected = plain.nearest(users[:200], k, setting)
    # Near the border of a list two devices may read another one: medians tell.
    row: dict[str, Any] = {
        "setting": setting,
        "recall": float(exported.returned(top, ids).mean()),
        "largest_difference": float(np.abs(scores - expected).max()),
        "median_difference": float(np.median(np.abs(scores - expected))),
    }
    for size in BATCHES:
        ways: dict[str, Callable[[], Any]] = {
            "here": partial(index.nearest, users[:size], k, setting),
            "cpu": partial(plain.nearest, users[:size], k, setting),
        }
        times = interleave(ways, 3 if size == max(BATCHES) else 10)
        row[f"ms_{size}"] = {n: round(median(s) * 1e3, 3) for n, s in times.items()}
    return row


def _filter_probe(index: ShardedIndex, users: Float32s, k: int) -> dict[str, Any]:
    """Count ads outside of a filter: of FAISS on the card, and of our search."""
    (shard,) = index.shards
    mask = np.random.default_rng(3).random(index.count) < 0.5
    eligible = index.eligible(shard.ids[mask])
    setting = {name: values[-1] for name, values in index.kind.search_grid().items()}
    setting = {name: min(value, 192) for name, value in setting.items()}
    ids, _ = index.nearest(users, k, setting, eligible)
    result = {"ours": _outside(ids[ids >= 0], shard.ids[mask]), "asked": ids.size}
    copy: Any = shard.copy
    if copy is not None:
        parameters = index.kind.search_parameters(setting, eligible.selectors[0])
        try:
            _, numbers = copy.index.search(users, k, params=parameters)
        except RuntimeError as error:
            return result | {"faiss": str(error).strip().splitlines()[-1]}
        numbers = numbers[numbers >= 0]
        result["faiss"] = _outside(shard.ids[numbers], shard.ids[mask])
    return result


def _outside(ids: Int64s, eligible: Int64s) -> int:
    return int((~np.isin(ids, eligible)).sum())


def _two_threads(
    index: ShardedIndex, users: Float32s, k: int, settings: list[SearchSetting]
) -> bool:
    """Search from two threads with settings of their own; compare with one thread."""
    work = [(users[n : n + 8], k, settings[n % len(settings)]) for n in range(64)]
    alone = [index.nearest(*one)[1] for one in work]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda one: index.nearest(*one)[1], work))
    return all(map(np.array_equal, alone, together))


if __name__ == "__main__":
    main()
