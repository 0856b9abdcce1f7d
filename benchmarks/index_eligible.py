"""Filtered queries over every kind of index: does an ineligible ad ever come back?

    python benchmarks/index_eligible.py --queries 1000000

A made catalog of clusters, K = 100, recall target .985 (.95 for bytes alone). For
every kind and for 100, 50, 10, 1 and .1% eligible ads, drawn by chance: ids outside of
the eligible ones are counted, recall is measured against brute force over them on the
first 200 users, and the time of a query is compared with the same search without a
filter (batches of 64).
"""

import argparse
import time
from typing import Any

import numpy as np
from timing import keep_result

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.gate import tune_and_validate
from torchrec_adrec.index.kinds import KINDS, derive_kind
from torchrec_adrec.index.sharded import ShardedIndex, set_search_threads

ADS, DIM, K, TARGET = 50_000, 32, 100, 0.985
SATURATED = 0.95
# The first directions of these vectors hold most of them, and 16 values for two of them
# together are too few: recall 0.82 however many are compared again.
BUILD = {"ivf_pq_refined": {"parts": DIM}}
SHARES = (1, 0.5, 0.1, 0.01, 0.001)
MEASURED, BATCH = 200, 64


def clusters(rows: int, seed: int) -> Float32s:
    """Draw vectors of length 1 near 500 centres, (rows, D), fewer and fewer of each."""
    centres = np.random.default_rng(0).normal(size=(500, DIM))
    rng = np.random.default_rng(seed)
    likely = 1 / np.sqrt(np.arange(1, 501))
    picked = rng.choice(500, rows, p=likely / likely.sum())
    # Falling variances, as towers have: most of it lies in few directions.
    scale = np.arange(1, DIM + 1) ** -0.8
    vectors = (centres[picked] + rng.normal(scale=0.5, size=(rows, DIM))) * scale
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1_000_000, help="of all kinds")
    args = parser.parse_args()
    set_search_threads(1)
    exported = Exported.by_id(np.arange(ADS) * 7 + 2**61, clusters(ADS, 1))
    users = clusters(4096, 2)
    count = -(-args.queries // (len(KINDS) * len(SHARES)))
    rows = [row for name in KINDS for row in of_kind(name, exported, users, count)]
    keep_result(
        "index_eligible",
        {
            "ads": ADS,
            "dim": DIM,
            "k": K,
            "target": TARGET,
            "queries": sum(row["queries"] for row in rows),
            "ineligible": sum(row["ineligible"] for row in rows),
            "least_recall": min(row["recall"] for row in rows),
            "rows": rows,
        },
    )


def of_kind(
    name: str, exported: Exported, users: Float32s, count: int
) -> list[dict[str, Any]]:
    """Build and tune one kind, then filter by every share."""
    kind = derive_kind(name, BUILD.get(name, {}), ADS, DIM)
    index = ShardedIndex.of_vectors(kind, exported.ids, exported.vectors)
    # Bytes alone do not reach the target: the gate must refuse them here.
    target = SATURATED if name == "ivf_sq8" else TARGET
    tune_and_validate(index, exported, users[:1000], K, target)
    return [of_share(index, exported, users, share, count) for share in SHARES]


def of_share(
    index: ShardedIndex, exported: Exported, users: Float32s, share: float, count: int
) -> dict[str, Any]:
    """Search with a filter of so many ads."""
    mask = np.random.default_rng(3).random(ADS) < share
    eligible = index.eligible(exported.ids[mask])
    ineligible, seconds = 0, 0.0
    for first in range(0, count, BATCH):
        queries = users[np.arange(first, min(first + BATCH, count)) % len(users)]
        started = time.perf_counter()
        ids, _ = index.search(queries, K, eligible)
        seconds += time.perf_counter() - started
        ineligible += int((~mask[exported.rows(ids)]).sum())
    some = users[:MEASURED]
    started = time.perf_counter()
    for first in range(0, MEASURED, BATCH):
        index.search(some[first : first + BATCH], K)
    plain = (time.perf_counter() - started) / MEASURED
    size = min(K, int(mask.sum()))
    ids, _ = index.search(some, K, eligible)
    top = exported.exact_top(some, size, mask)
    row = {
        "kind": index.kind.name,
        "share": share,
        "queries": count,
        "ineligible": ineligible,
        "recall": round(float(exported.returned(top, ids).mean()), 4),
        "search": index.setting_for(eligible),
        "us_a_query": round(seconds / count * 1e6, 1),
        "us_without_filter": round(plain * 1e6, 1),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
