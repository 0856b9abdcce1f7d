"""Inverted lists of whole vectors: a query reads only the lists that are near to it."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Self

import faiss

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.index.kinds.kind import SearchSetting

# FAISS warns below 39 vectors a list and takes a sample of its own above 256.
TRAINING_ROWS_PER_LIST = 64


@dataclass(frozen=True)
class IvfFlat:
    """k-means splits the ads into `nlist` lists, of which a search reads `nprobe`.

    The vectors are kept whole, so the scores are exact and only ads in lists that are
    not read can be missed.

    Attributes:
        nlist: number of inverted lists.
    """

    name: ClassVar[str] = "ivf_flat"
    # Up to 100,000 ads, exact search is as fast and right by construction.
    auto_from: ClassVar[int | None] = 100_001

    nlist: int

    @classmethod
    def derive(cls, config: IndexConfig, count: int) -> Self:
        """Take `index.nlist`, or 4 sqrt(count) lists.

        Raises:
            ConfigError: there are more lists than ads.
        """
        nlist = config.nlist or int(4 * sqrt(count))
        if nlist > count:
            raise ConfigError(f"index.nlist = {nlist} exceeds the {count} ads")
        return cls(nlist)

    @property
    def training_rows(self) -> int:
        """The same number for every list."""
        return self.nlist * TRAINING_ROWS_PER_LIST

    def create(self, sample: Float32s, seed: int) -> Any:
        """Train the centres of the lists; the lists are empty."""
        dim = sample.shape[1]
        centres = faiss.IndexFlatIP(dim)
        metric = faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFFlat(centres, dim, self.nlist, metric)
        index.cp.seed = seed
        index.train(sample)
        return index

    def search_settings(self) -> list[SearchSetting]:
        """Return the powers of two below `nlist`, then all lists."""
        powers = [2**i for i in range(self.nlist.bit_length()) if 2**i < self.nlist]
        return [{"nprobe": nprobe} for nprobe in (*powers, self.nlist)]

    def search_parameters(self, setting: SearchSetting) -> Any:
        """Return the number of lists to read."""
        parameters: Any = faiss.SearchParametersIVF()
        parameters.nprobe = setting["nprobe"]
        return parameters
