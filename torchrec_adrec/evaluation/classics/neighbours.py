"""Item-based models: a table of ads by ads, times what the user has clicked.

Shape letters: B users, U users of training, N ads, K neighbours.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import lapack
from scipy.sparse import csr_matrix, vstack

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.evaluation.classics.interactions import binary

BLOCK_ADS = 512  # rows of the table of ads by ads that are dense at a time


@dataclass(frozen=True)
class ItemWeights:
    """The score of an ad is the sum of its weights from the ads that the user clicked.

    Attributes:
        weights: (N, N), sparse or dense, from the clicked ad to the scored one.
    """

    weights: csr_matrix | Float32s

    def scores(self, history: csr_matrix, users: Int64s | None) -> Float32s:
        """See `Scorer`; nothing is known of a user but the clicks."""
        product = history @ self.weights
        dense = product if isinstance(product, np.ndarray) else product.toarray()
        return np.asarray(dense, dtype=np.float32)


def fit_item_knn(clicks: csr_matrix, neighbours: int, shrink: float) -> ItemWeights:
    """Keep the nearest ads of each ad by the cosine of their users.

    The cosine is drawn toward 0 where few users clicked both: `both / (|i| |j| +
    shrink)` (Sarwar et al., WWW 2001; the shrinkage is that of Bell and Koren, 2007).
    Of the ads that are scored, each keeps its nearest ones.

    Args:
        clicks: (U, N).
        neighbours: K, of each ad.
        shrink: added to the product of the lengths.
    """
    table = binary(clicks)
    columns, lengths = table.T.tocsr(), np.sqrt(np.asarray(table.sum(axis=0)).ravel())
    count, parts = table.shape[1], []
    for first in range(0, count, BLOCK_ADS):
        rows = slice(first, min(first + BLOCK_ADS, count))
        both = np.asarray((columns[rows] @ table).toarray(), dtype=np.float32)
        both[np.arange(len(both)), np.arange(rows.start, rows.stop)] = 0
        near = both / np.maximum(lengths[rows, None] * lengths + shrink, 1e-9)
        top = torch.topk(torch.from_numpy(near), min(neighbours, count - 1), dim=1)
        pointers = np.arange(len(near) + 1) * top.indices.shape[1]
        values = top.values.numpy().ravel(), top.indices.numpy().ravel(), pointers
        parts.append(csr_matrix(values, shape=near.shape))
    # Row j holds the neighbours of the scored ad j: the weights lead from them to it.
    weights = vstack(parts).T.tocsr().astype(np.float32)
    weights.eliminate_zeros()
    return ItemWeights(weights)


def fit_ease(clicks: csr_matrix, l2: float) -> ItemWeights:
    """Fit EASE: every ad's clicks by those of all others, in closed form.

    With `P = (X'X + l2 I)^-1` the weights are `I - P / diag(P)` by columns (Steck, WWW
    2019). The table is inverted in place.

    Args:
        clicks: (U, N).
        l2: the penalty.

    Raises:
        DataError: the table of all pairs of ads does not fit into memory.
    """
    table = binary(clicks)
    count = table.shape[1]
    check_memory(count, available_bytes())
    gram = np.zeros((count, count), dtype=np.float32, order="F")
    for first in range(0, count, BLOCK_ADS):
        rows = slice(first, first + BLOCK_ADS)
        gram[:, rows] = (table.T @ table[:, rows]).toarray()
    gram[np.diag_indices(count)] += l2
    factor, failed = lapack.spotrf(gram, lower=0, overwrite_a=1)
    inverse, failed_too = lapack.spotri(factor, lower=0, overwrite_c=1)
    if failed or failed_too:
        raise DataError(
            f"EASE: X'X + {l2:g} I is not positive in single precision; set a larger l2"
        )
    del gram, factor
    return ItemWeights(_ease_weights(inverse))


def _ease_weights(inverse: Float32s) -> Float32s:
    """Turn the upper triangle of P into the weights, in place."""
    count = len(inverse)
    diagonal = inverse[np.diag_indices(count)].copy()
    for first in range(0, count, BLOCK_ADS):
        rows = slice(first, min(first + BLOCK_ADS, count))
        upper = np.triu(inverse[rows, rows])
        inverse[rows, rows] = upper + np.triu(upper, 1).T
        inverse[rows.stop :, rows] = inverse[rows, rows.stop :].T
    # P is symmetric: seen transposed it is the same table with its rows side by side in
    # memory. A sparse product reads rows, and would copy a table of columns every time.
    weights = inverse.T
    weights /= -diagonal  # by columns: ad j is explained by the others
    weights[np.diag_indices(count)] = 0
    return weights


def check_memory(ads: int, available: int) -> None:
    """Refuse a table of all pairs of ads before it is made.

    Raises:
        DataError: says what it would take.
    """
    # The table itself, and a quarter more for blocks and for the product's parts.
    needed = int(1.25 * 4 * ads**2)
    if needed > available:
        raise DataError(
            f"EASE holds a table of {ads:,} x {ads:,} ads, {needed / 2**30:.1f} GiB"
            f" with its parts, and {available / 2**30:.1f} GiB are available; leave"
            " `ease` out, or take a machine with more memory"
        )


def available_bytes() -> int:
    """Memory that a process may take without swapping, as Linux estimates it.

    Raises:
        ConfigError: this system does not tell.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ConfigError("/proc/meminfo has no MemAvailable: the memory is not known")
