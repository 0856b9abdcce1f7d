"""Building on GPUs: k-means on all cards, and the nearest list of every ad on one.

Codes are written by the CPU into the same files as without a card.
"""

from typing import Any

import faiss

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.index.device import Gpus, library, workspaces
from torchrec_adrec.index.kinds.kind import Trainer, train_on_cpu
from torchrec_adrec.index.pieces import Assign

LISTED = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer)


def trainer_on(gpus: Gpus | None) -> Trainer:
    """Return what trains an index, its k-means on all cards if there are some."""
    if gpus is None:
        return train_on_cpu

    def train(index: Any, sample: Float32s) -> None:
        ivf: Any = faiss.extract_index_ivf(index)
        resources = workspaces(gpus.count)
        clustering = library.index_cpu_to_gpu_multiple_py(
            resources,
            faiss.IndexFlat(ivf.d, ivf.quantizer.metric_type),
            library.GpuMultipleClonerOptions(),  # whole on each: it takes some rows
            list(range(gpus.count)),
        )
        ivf.clustering_index = clustering
        try:
            index.train(sample)
        finally:
            ivf.clustering_index = None  # a bare pointer, to what is freed next

    return train


def assigner(index: Any, gpus: Gpus | None, rank: int) -> Assign | None:
    """Return what finds the nearest list of vectors on a card; None: FAISS, by the CPU.

    Args:
        index: trained.
        gpus: the cards of this machine, which its ranks share out.
        rank: of this process.
    """
    # Packed codes must be added by FAISS itself: it writes beyond the end of lists
    # whose numbers are given. A projection or rotation stands before the lists.
    if gpus is None or not isinstance(index, LISTED):
        return None
    resources = library.StandardGpuResources()
    quantizer = library.index_cpu_to_gpu(
        resources, rank % gpus.count, faiss.downcast_index(index.quantizer)
    )

    def assign(vectors: Float32s) -> Int64s:
        # The function keeps the card's resources, which FAISS points at.
        assert resources is not None
        numbers: Int64s = quantizer.search(vectors, 1)[1].ravel()
        return numbers

    return assign
