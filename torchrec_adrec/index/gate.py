"""No index is published that was not measured against brute force."""

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import GateError
from torchrec_adrec.index.manifest import Gate
from torchrec_adrec.index.sharded import ShardedIndex

# Both relative to a score, or absolute where it is below 1 (a cosine always is).
SCORE_TOLERANCE = 1e-5
TIE = 1e-6
CHUNK = 64  # queries compared at a time: 64 x 1M ads are 256 MB


def tune_and_validate(
    index: ShardedIndex,
    ids: Int64s,
    vectors: Float32s,
    queries: Float32s,
    k: int,
    target: float,
) -> Gate:
    """Set `nprobe` to the least power of two that reaches the target, then measure.

    Args:
        index: its `nprobe` is set.
        ids, vectors: (N,), (N, D), what was exported.
        queries: (B, D), held-out users.
        k: as many as are served.

    Raises:
        GateError: the shards do not hold each exported ad once, no `nprobe` reaches
            the target recall, or a returned score is not the inner product of the
            exported vectors.
    """
    k = min(k, len(ids))
    order = np.argsort(ids)
    ids, vectors = ids[order], vectors[order]
    held = np.sort(index.ids())
    if not np.array_equal(held, ids):
        raise GateError(
            f"the shards hold {len(np.unique(held))} distinct ads in {len(held)}"
            f" entries, exported were {len(ids)}: ads are lost, doubled or others;"
            " nothing was published"
        )
    floor = _exact_floor(queries, vectors, k)
    index.nprobe = 1
    while True:
        recall, error = _measure(index, ids, vectors, queries, floor, k)
        if recall >= target or index.nprobe >= index.nlist:
            break
        index.nprobe = min(index.nprobe * 2, index.nlist)
    if error > SCORE_TOLERANCE:
        raise GateError(
            f"the index returns scores that are {error:.2g} away from the model's inner"
            f" product, more than {SCORE_TOLERANCE:g}: it was built with another metric"
            " or other vectors; nothing was published"
        )
    if recall < target:
        raise GateError(
            f"recall@{k} against brute force is {recall:.4f} even at nprobe"
            f" {index.nprobe} of {index.nlist}, below index.target_recall {target:g};"
            " nothing was published"
        )
    return Gate(
        k=k,
        queries=len(queries),
        recall=recall,
        target_recall=target,
        score_error=error,
    )


def _exact_floor(queries: Float32s, vectors: Float32s, k: int) -> Float32s:
    """The k-th best inner product of each query, by brute force, (B,)."""
    floor = np.empty(len(queries), dtype=np.float32)
    for at in _chunks(len(queries)):
        scores = queries[at] @ vectors.T
        floor[at] = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    return floor


def _measure(
    index: ShardedIndex,
    ids: Int64s,
    vectors: Float32s,
    queries: Float32s,
    floor: Float32s,
    k: int,
) -> tuple[float, float]:
    """Recall by score (so equal scores are fair) and the largest score error."""
    hits, worst = 0, 0.0
    for at in _chunks(len(queries)):
        found, scores = index.search(queries[at], k)
        true = np.einsum(
            "bd,bkd->bk", queries[at], vectors[np.searchsorted(ids, found)]
        )
        size = np.maximum(np.abs(true), 1)
        # Of ads as good as the k-th best any will do; rounding must not decide.
        hits += int((true >= floor[at, None] - TIE * size).sum())
        worst = max(worst, float((np.abs(true - scores) / size).max()))
    return hits / (len(queries) * k), worst


def _chunks(rows: int) -> list[slice]:
    return [slice(first, first + CHUNK) for first in range(0, rows, CHUNK)]
