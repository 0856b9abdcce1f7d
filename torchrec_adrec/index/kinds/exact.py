"""Exact search: every query is compared with every ad."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import faiss

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.index.kinds.kind import (
    SearchGrid,
    SearchSetting,
    Trainer,
    train_on_cpu,
)

Parameters: Any = faiss.SearchParameters  # whose stub knows no arguments


@dataclass(frozen=True)
class Exact:
    """A table of whole vectors. Its recall is 1 and it needs no training."""

    name: ClassVar[str] = "exact"
    exhaustive: ClassVar[bool] = True
    code_error: ClassVar[float] = 0.0
    on_gpu: ClassVar[bool] = True

    @classmethod
    def derive(cls, build: Mapping[str, int], count: int, dim: int) -> Self:
        """Return the one index that there is: it has no parameters."""
        return cls(**build)

    @property
    def training_rows(self) -> int:
        """No vectors: nothing is learned."""
        return 0

    def create(
        self, sample: Float32s, seed: int, trainer: Trainer = train_on_cpu
    ) -> Any:
        """Make an empty table."""
        return faiss.IndexFlatIP(sample.shape[1])

    def search_grid(self) -> SearchGrid:
        """Return an empty grid: nothing can be tuned."""
        return {}

    def search_parameters(self, setting: SearchSetting, selector: Any = None) -> Any:
        """Return the selector as the only parameter."""
        return Parameters(sel=selector) if selector is not None else None

    def store(self, index: Any) -> Any:
        """Return the index: it holds the vectors as they are."""
        return index

    def bytes_per_ad(self, dim: int) -> float:
        """Four bytes a dimension."""
        return 4 * dim
