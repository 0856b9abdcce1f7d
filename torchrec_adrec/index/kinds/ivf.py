"""Inverted lists: a query reads only the lists that are near to it.

The members of this family differ in how a vector of a list is written: whole, as half
floats, or as a byte a dimension. What is written is what is compared, so a search can
miss ads of lists that it does not read, and ads whose codes are too coarse.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Self

import faiss

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.index.kinds.kind import (
    SearchGrid,
    SearchSetting,
    Trainer,
    steps,
    train_on_cpu,
)

# FAISS warns below 39 vectors a list and takes a sample of its own above 256.
TRAINING_ROWS_PER_LIST = 64
Parameters: Any = faiss.SearchParametersIVF  # whose stub knows no arguments
FP16_ERROR = 2.0**-10  # a half float has 11 significant bits, the last one rounded


@dataclass(frozen=True)
class IvfFlat:
    """k-means splits the ads into `nlist` lists, of which a search reads `nprobe`.

    The vectors are kept whole, so the scores are exact and only ads in lists that are
    not read can be missed. The other kinds of the family change the codec.

    Attributes:
        codec: FAISS's name of how a vector is written.
        nlist: number of inverted lists.
    """

    name: ClassVar[str] = "ivf_flat"
    codec: ClassVar[str] = "Flat"
    exhaustive: ClassVar[bool] = True
    code_error: ClassVar[float] = 0.0
    on_gpu: ClassVar[bool] = True
    bytes_per_dim: ClassVar[float] = 4

    nlist: int

    @classmethod
    def derive(cls, build: Mapping[str, int], count: int, dim: int) -> Self:
        """Take 4 sqrt(count) lists and the defaults of the family's member.

        Raises:
            ConfigError: there are more lists than ads, or a parameter does not fit D.
        """
        kind = cls(**{"nlist": int(4 * sqrt(count)), **cls.defaults(dim), **build})
        if not 1 <= kind.nlist <= count:
            raise ConfigError(
                f"index.build.nlist = {kind.nlist}, expected 1 to {count}, the number"
                " of ads"
            )
        return kind

    @classmethod
    def defaults(cls, dim: int) -> dict[str, int]:
        """Return the parameters beside `nlist` for vectors of width `dim`."""
        return {}

    @property
    def training_rows(self) -> int:
        """The same number for every list."""
        return self.nlist * TRAINING_ROWS_PER_LIST

    def create(
        self, sample: Float32s, seed: int, trainer: Trainer = train_on_cpu
    ) -> Any:
        """Train the centres of the lists, and the code; the lists are empty."""
        dim = sample.shape[1]
        metric = faiss.METRIC_INNER_PRODUCT
        index = faiss.index_factory(dim, self.factory(dim), metric)
        faiss.extract_index_ivf(index).cp.seed = seed
        trainer(index, sample)
        return index

    def factory(self, dim: int) -> str:
        """Return the description from which FAISS makes the index."""
        return f"IVF{self.nlist},{self.codec}"

    def search_grid(self) -> SearchGrid:
        """Return the numbers of lists to read, up to all of them."""
        return {"nprobe": steps(1, self.nlist)}

    def search_parameters(self, setting: SearchSetting, selector: Any = None) -> Any:
        """Return the number of lists to read and the selector."""
        selected = {} if selector is None else {"sel": selector}
        return Parameters(nprobe=int(setting["nprobe"]), **selected)

    def store(self, index: Any) -> Any:
        """Return the index, with a table of the place of each vector in the lists."""
        if index.direct_map.no():
            index.make_direct_map()
        return index

    def bytes_per_ad(self, dim: int) -> float:
        """Return the code, and the number of the ad in its list."""
        return self.bytes_per_dim * dim + 8


@dataclass(frozen=True)
class IvfSqFp16(IvfFlat):
    """Half floats: half the memory, read in half the time, with the same recall."""

    name: ClassVar[str] = "ivf_sqfp16"
    codec: ClassVar[str] = "SQfp16"
    code_error: ClassVar[float] = FP16_ERROR
    bytes_per_dim: ClassVar[float] = 2


@dataclass(frozen=True)
class IvfSq8(IvfFlat):
    """A byte a dimension. Its recall ends where two ads have nearly the same code.

    On a million made vectors of width 256 that was .981 for K = 500.
    """

    name: ClassVar[str] = "ivf_sq8"
    codec: ClassVar[str] = "SQ8"
    exhaustive: ClassVar[bool] = False
    # Each dimension is cut into 255 steps between the extremes of the training sample:
    # about .01 is lost, but a value beyond the extremes is cut off, in made vectors of
    # many lengths a third of one. Another ad's vector is 1.4 away.
    code_error: ClassVar[float] = 0.5
    bytes_per_dim: ClassVar[float] = 1
