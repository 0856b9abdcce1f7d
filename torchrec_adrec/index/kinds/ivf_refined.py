"""Inverted lists of short codes, whose best finds are compared again by half floats.

The members differ in the code of the first stage. It only has to bring the right ads
among the first `k_factor` times K: their order and their scores come from the second.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import faiss
import numpy as np

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.index.kinds.ivf import FP16_ERROR, IvfFlat
from torchrec_adrec.index.kinds.kind import (
    SearchGrid,
    SearchSetting,
    Trainer,
    train_on_cpu,
)

# Their stubs know no arguments.
Refinement: Any = faiss.IndexRefineSearchParameters
BehindTransform: Any = faiss.SearchParametersPreTransform
K_FACTORS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8)


@dataclass(frozen=True)
class IvfSq8Refined(IvfFlat):
    """A byte a dimension in the lists.

    Attributes:
        transforms: whether vectors are rotated or projected before the lists.
    """

    name: ClassVar[str] = "ivf_sq8_refined"
    transforms: ClassVar[bool] = False
    on_gpu: ClassVar[bool] = False
    codec: ClassVar[str] = "SQ8"
    exhaustive: ClassVar[bool] = False
    code_error: ClassVar[float] = FP16_ERROR
    bytes_per_dim: ClassVar[float] = 1

    def factory(self, dim: int) -> str:
        """Add the half floats to the first stage."""
        return f"{self.first_stage(dim)},Refine(SQfp16)"

    def first_stage(self, dim: int) -> str:
        """Return FAISS's description of the lists."""
        return f"IVF{self.nlist},{self.codec}"

    def search_grid(self) -> SearchGrid:
        """Return the numbers of lists to read, and how many finds to compare again."""
        return super().search_grid() | {"k_factor": K_FACTORS}

    def search_parameters(self, setting: SearchSetting, selector: Any = None) -> Any:
        """Return both numbers, and the selector for the first stage."""
        first_stage = super().search_parameters(setting, selector)
        if self.transforms:
            first_stage = BehindTransform(index_params=first_stage)
        return Refinement(k_factor=setting["k_factor"], base_index_params=first_stage)

    def store(self, index: Any) -> Any:
        """Return the half floats."""
        return faiss.downcast_index(index.refine_index)

    def bytes_per_ad(self, dim: int) -> float:
        """Add two bytes a dimension to the lists."""
        return super().bytes_per_ad(dim) + 2 * dim


@dataclass(frozen=True)
class IvfPqRefined(IvfSq8Refined):
    """Product quantisation: 4 bits for each part of a vector, 32 vectors at a time.

    "Fast-scan" keeps the table of a query's distances in registers. André, Kermarrec,
    Le Scouarnec, Cache locality is not enough, VLDB 2015.

    Attributes:
        parts: into how many a vector is cut; by default two dimensions each.
    """

    name: ClassVar[str] = "ivf_pq_refined"

    parts: int

    @classmethod
    def defaults(cls, dim: int) -> dict[str, int]:
        """Give a part two dimensions, or one where D is odd."""
        return {"parts": dim // 2 if dim % 2 == 0 else dim}

    def first_stage(self, dim: int) -> str:
        """Return fast-scan lists.

        Raises:
            ConfigError: D cannot be cut into so many parts.
        """
        if dim % self.parts:
            raise ConfigError(
                f"index.build.parts = {self.parts} does not divide {dim}, the width of"
                " a vector"
            )
        # "r": what is written is the way from the centre of the list. 16 values a part
        # say far more of it than of a whole vector: half of the k_factor suffices.
        return f"IVF{self.nlist},PQ{self.parts}x4fsr"

    def bytes_per_ad(self, dim: int) -> float:
        """Return half a byte a part and what is compared again."""
        return self.parts / 2 + 8 + 2 * dim


@dataclass(frozen=True)
class IvfRabitqRefined(IvfSq8Refined):
    """RaBitQ: after a random rotation, `bits` bits a dimension, with known errors.

    Gao, Long, RaBitQ, SIGMOD 2024; the fast-scan form is new in FAISS 1.15.

    Attributes:
        bits: a dimension; one suffices where many finds are compared again.
    """

    name: ClassVar[str] = "ivf_rabitq_refined"
    transforms: ClassVar[bool] = True

    bits: int

    @classmethod
    def defaults(cls, dim: int) -> dict[str, int]:
        """Take one bit."""
        return {"bits": 1}

    def first_stage(self, dim: int) -> str:
        """Return rotated lists of bits."""
        # FAISS writes one bit without a number.
        bits = self.bits if self.bits > 1 else ""
        return f"RR{dim},IVF{self.nlist},RaBitQfs{bits}"

    def bytes_per_ad(self, dim: int) -> float:
        """Return the bits, two factors of the estimate and what is compared again."""
        return self.bits * dim / 8 + 16 + 2 * dim


@dataclass(frozen=True)
class PcaIvfSq8Refined(IvfSq8Refined):
    """The `pca` directions with the most of all vectors, a byte each, in the lists.

    Attributes:
        pca: number of directions; by default 64, or half of D if that is less.
    """

    name: ClassVar[str] = "pca_ivf_sq8_refined"
    transforms: ClassVar[bool] = True

    pca: int

    @classmethod
    def defaults(cls, dim: int) -> dict[str, int]:
        """Take 64 directions, or half of D."""
        return {"pca": min(64, max(dim // 2, 1))}

    def first_stage(self, dim: int) -> str:
        """Return lists behind a projection.

        Raises:
            ConfigError: there are not so many directions.
        """
        if not 1 <= self.pca <= dim:
            raise ConfigError(f"index.build.pca = {self.pca}, expected 1 to {dim}")
        return f"PCA{self.pca},IVF{self.nlist},{self.codec}"

    def create(
        self, sample: Float32s, seed: int, trainer: Trainer = train_on_cpu
    ) -> Any:
        """Train the projection, then the lists behind it."""
        dim = sample.shape[1]
        metric = faiss.METRIC_INNER_PRODUCT
        index: Any = faiss.index_factory(dim, self.factory(dim), metric)
        base: Any = faiss.downcast_index(index.base_index)
        # With every vector and its opposite the mean is 0, so that nothing is
        # subtracted: distances survive a shift, inner products do not.
        projection: Any = faiss.downcast_VectorTransform(base.chain.at(0))
        projection.train(np.concatenate([sample, -sample]))
        faiss.extract_index_ivf(index).cp.seed = seed
        trainer(index, sample)
        return index

    def bytes_per_ad(self, dim: int) -> float:
        """Return a byte a direction and what is compared again."""
        return self.pca + 8 + 2 * dim
