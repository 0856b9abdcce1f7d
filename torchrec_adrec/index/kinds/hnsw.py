"""HNSW: a graph of near neighbours, which a query walks along."""

from collections.abc import Mapping
from dataclasses import dataclass
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

Parameters: Any = faiss.SearchParametersHNSW  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Hnsw:
    """Every ad is linked to `links` near ones; a search keeps `efSearch` finds.

    Malkov, Yashunin, 2018. It is built only on request: for K = 500 it must keep at
    least as many finds, where inverted lists were three times as fast.

    Attributes:
        links: of an ad on each upper floor of the graph; twice as many on the lowest.
        ef_construction: finds that are kept while an ad is added.
    """

    name: ClassVar[str] = "hnsw"
    exhaustive: ClassVar[bool] = False
    code_error: ClassVar[float] = 0.0
    on_gpu: ClassVar[bool] = False

    links: int
    ef_construction: int

    @classmethod
    def derive(cls, build: Mapping[str, int], count: int, dim: int) -> Self:
        """Take 32 links and 100 finds.

        Raises:
            ConfigError: there is nothing to walk along.
        """
        kind = cls(**{"links": 32, "ef_construction": 100, **build})
        if kind.links < 2 or kind.ef_construction < 1:
            raise ConfigError(
                f"index.build = {dict(build)}, expected 2 or more links and 1 or more"
                " finds (ef_construction)"
            )
        return kind

    @property
    def training_rows(self) -> int:
        """No vectors: nothing is learned."""
        return 0

    def create(
        self, sample: Float32s, seed: int, trainer: Trainer = train_on_cpu
    ) -> Any:
        """Make an empty graph."""
        metric = faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexHNSWFlat(sample.shape[1], self.links, metric)
        index.hnsw.efConstruction = self.ef_construction
        return index

    def search_grid(self) -> SearchGrid:
        """Return the numbers of finds to keep; FAISS keeps K at least."""
        return {"efSearch": steps(16, 8192)}

    def search_parameters(self, setting: SearchSetting, selector: Any = None) -> Any:
        """Return the number of finds and the selector."""
        selected = {} if selector is None else {"sel": selector}
        return Parameters(efSearch=int(setting["efSearch"]), **selected)

    def store(self, index: Any) -> Any:
        """Return the table of whole vectors."""
        return faiss.downcast_index(index.storage)

    def bytes_per_ad(self, dim: int) -> float:
        """Return the vector and four bytes a link."""
        return 4 * dim + 4 * 2 * self.links
