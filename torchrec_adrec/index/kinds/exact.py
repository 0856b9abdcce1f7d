"""Exact search: every query is compared with every ad."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import faiss

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.config.run import IndexConfig
from torchrec_adrec.index.kinds.kind import SearchSetting


@dataclass(frozen=True)
class Exact:
    """A table of whole vectors. Its recall is 1 and it needs no training."""

    name: ClassVar[str] = "exact"
    auto_from: ClassVar[int | None] = 0

    @classmethod
    def derive(cls, config: IndexConfig, count: int) -> Self:
        """Return the one index that there is: it has no sizes."""
        return cls()

    @property
    def training_rows(self) -> int:
        """No vectors: nothing is learned."""
        return 0

    def create(self, sample: Float32s, seed: int) -> Any:
        """Make an empty table."""
        return faiss.IndexFlatIP(sample.shape[1])

    def search_settings(self) -> list[SearchSetting]:
        """Return the one setting, which is empty."""
        return [{}]

    def search_parameters(self, setting: SearchSetting) -> Any:
        """Return None: nothing can be tuned."""
        return None
