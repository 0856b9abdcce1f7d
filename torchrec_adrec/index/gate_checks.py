"""What must hold of an index whatever its recall is."""

import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import GateError
from torchrec_adrec.index.exported import TIE, Exported, chunks
from torchrec_adrec.index.sharded import ShardedIndex

SCORE_TOLERANCE = 1e-5  # relative to a score, or absolute if it is below 1
UNIT = 1e-3  # how far from 1 the length of a normalised vector may be
SELF_HITS = 200  # ads that are asked for with their own vector


def check_ids(index: ShardedIndex, exported: Exported) -> None:
    """Compare the ids of the shards with the exported ones.

    Raises:
        GateError: they differ.
    """
    indexed = np.sort(index.stored_ids())
    if not np.array_equal(indexed, exported.ids):
        raise GateError(
            f"the shards hold {len(np.unique(indexed))} distinct ads in {len(indexed)}"
            f" entries, exported were {len(exported)}: ads are lost, doubled or others;"
            " nothing was published"
        )


def check_lengths(exported: Exported) -> None:
    """Refuse vectors that are no numbers: their ads are never found, nor missed.

    Raises:
        GateError: there are some.
    """
    wrong = ~np.isfinite(exported.lengths)
    if wrong.any():
        raise GateError(
            f"{wrong.sum()} of {len(exported)} exported vectors are not finite, that of"
            f" ad {exported.ids[wrong][0]} is one; nothing was published"
        )


def check_answer(
    index: ShardedIndex,
    exported: Exported,
    queries: Float32s,
    ids: Int64s,
    scores: Float32s,
) -> tuple[float, float]:
    """Check that no ad is returned twice, and that scores are inner products.

    A score is compared with the product of the query and the stored vector, and the
    stored vector with the exported one: so what a code loses is told from what another
    metric or other vectors would give.

    Args:
        index: that was searched.
        exported: what it was built from.
        queries: (B, D).
        ids, scores: (B, K), the answer.

    Returns:
        The largest error of a score, and of a stored vector as a share of its length.

    Raises:
        GateError: an ad stands twice in a row, or an error is larger than the kind
            explains.
    """
    ordered = np.sort(ids, axis=1)
    twice = (np.diff(ordered, axis=1) == 0).any(axis=1)
    if twice.any():
        raise GateError(
            f"{twice.sum()} of {len(ids)} answers hold an ad twice; nothing was"
            " published"
        )
    score_error = code_error = 0.0
    for chunk in chunks(len(queries)):
        distinct, places = np.unique(ids[chunk], return_inverse=True)
        stored = index.stored(distinct)
        products = np.einsum(
            "bd,bkd->bk", queries[chunk], stored[places.reshape(ids[chunk].shape)]
        )
        size = np.maximum(np.abs(products), 1)
        # Python's `max` would lose a NaN.
        error = (np.abs(products - scores[chunk]) / size).max()
        score_error = float(np.maximum(score_error, error))
        vectors = exported.vectors[exported.rows(distinct)]
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), TIE)
        error = (np.linalg.norm(stored - vectors, axis=1) / lengths).max()
        code_error = float(np.maximum(code_error, error))
    _check_errors(index, score_error, code_error)
    return score_error, code_error


def _check_errors(index: ShardedIndex, score_error: float, code_error: float) -> None:
    # Not `error > tolerance`, which is false for NaN.
    if not score_error <= SCORE_TOLERANCE:
        raise GateError(
            f"the index returns scores that are {score_error:.2g} away from the inner"
            f" products with its vectors, more than {SCORE_TOLERANCE:g}: it was built"
            " with another metric; nothing was published"
        )
    kind = index.kind
    if not code_error <= kind.code_error + SCORE_TOLERANCE:
        raise GateError(
            f"the index holds vectors that are {code_error:.2g} of their length away"
            f" from the exported ones, where {kind.name} explains {kind.code_error:.2g}"
            ": it was built from other vectors; nothing was published"
        )


def self_hits(index: ShardedIndex, exported: Exported, seed: int = 0) -> float | None:
    """Return the share of sampled ads that their own vector finds.

    None for vectors of different lengths: there a longer one may score higher, and the
    lists that are near to a vector need not be those of the largest products.
    """
    lengths = exported.lengths
    if np.abs(lengths - 1).max() > UNIT:
        return None
    size = min(SELF_HITS, len(exported))
    rows = np.random.default_rng(seed).choice(len(exported), size, replace=False)
    vectors = exported.vectors[rows]
    k = min(10, len(exported))  # copies of an ad have its score and may come first
    _, scores = index.nearest(vectors, k, index.setting)
    error = index.kind.code_error + SCORE_TOLERANCE
    return float((scores[:, 0] >= (vectors**2).sum(axis=1) - 2 * error).mean())
