"""The gate: every index is measured against brute force before it is published."""

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import GateError
from torchrec_adrec.index.kinds.kind import describe
from torchrec_adrec.index.manifest import Gate
from torchrec_adrec.index.sharded import ShardedIndex

# Both are relative to a score, or absolute if it is below 1 (a cosine always is).
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
    """Choose the fastest search setting that reaches the target recall.

    Args:
        index: its `setting` is replaced by the chosen one.
        ids, vectors: (N,), (N, D), what was exported.
        queries: (B, D), held-out users.
        k: number of ads that are retrieved when serving.
        target: recall against brute force.

    Raises:
        GateError: the shards do not hold each exported ad once, no setting reaches the
            target recall, or a returned score is not the inner product of the exported
            vectors.
    """
    k = min(k, len(ids))
    order = np.argsort(ids)
    ids, vectors = ids[order], vectors[order]
    _check_ids(index, ids)
    thresholds = _exact_thresholds(queries, vectors, k)
    # From fast to thorough: the first that is good enough is the one to serve with.
    for setting in index.kind.search_settings():
        index.setting = setting
        recall, error = _measure(index, ids, vectors, queries, thresholds, k)
        if recall >= target:
            break
    # Not `error > SCORE_TOLERANCE`, which is false for NaN.
    if not error <= SCORE_TOLERANCE:
        raise GateError(
            f"the index returns scores that are {error:.2g} away from the model's inner"
            f" product, more than {SCORE_TOLERANCE:g}: it was built with another metric"
            " or other vectors; nothing was published"
        )
    if recall < target:
        raise GateError(
            f"recall@{k} against brute force is {recall:.4f} even at the most thorough"
            f" search ({describe(index.setting) or index.kind.name}), below"
            f" index.target_recall {target:g}; nothing was published"
        )
    return Gate(
        k=k,
        queries=len(queries),
        recall=recall,
        target_recall=target,
        score_error=error,
    )


def _check_ids(index: ShardedIndex, exported: Int64s) -> None:
    """Compare the ids of the shards with the exported ones, (N,), sorted.

    Raises:
        GateError: they differ.
    """
    indexed = np.sort(index.ids())
    if not np.array_equal(indexed, exported):
        raise GateError(
            f"the shards hold {len(np.unique(indexed))} distinct ads in {len(indexed)}"
            f" entries, exported were {len(exported)}: ads are lost, doubled or others;"
            " nothing was published"
        )


def _exact_thresholds(queries: Float32s, vectors: Float32s, k: int) -> Float32s:
    """Return the k-th best inner product of each query, by brute force, (B,)."""
    thresholds = np.empty(len(queries), dtype=np.float32)
    for chunk in _chunks(len(queries)):
        scores = queries[chunk] @ vectors.T
        thresholds[chunk] = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
    return thresholds


def _measure(
    index: ShardedIndex,
    ids: Int64s,
    vectors: Float32s,
    queries: Float32s,
    thresholds: Float32s,
    k: int,
) -> tuple[float, float]:
    """Return the mean recall and the largest error of a score.

    Args:
        ids, vectors: sorted by id.
        thresholds: (B,), the exact score of each query's k-th best ad.
    """
    hits, worst = 0, 0.0
    for chunk in _chunks(len(queries)):
        results, scores = index.search(queries[chunk], k)
        rows = np.searchsorted(ids, results)
        exact = np.einsum("bd,bkd->bk", queries[chunk], vectors[rows])
        size = np.maximum(np.abs(exact), 1)
        # Counted by score and not by id: of ads as good as the k-th best any will do,
        # and rounding must not decide between them.
        hits += int((exact >= thresholds[chunk, None] - TIE * size).sum())
        # Python's `max` would lose a NaN.
        worst = float(np.maximum(worst, (np.abs(exact - scores) / size).max()))
    return hits / (len(queries) * k), worst


def _chunks(rows: int) -> list[slice]:
    return [slice(first, first + CHUNK) for first in range(0, rows, CHUNK)]
